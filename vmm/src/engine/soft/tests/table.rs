//! Which instructions the processor has: found by decoding the whole opcode map in every mode, compared with what CPUID
//! announces, and written down in `docs/processor.md`.

use super::deviations;
use crate::engine::soft::decode;
use crate::engine::soft::features::{Announced, Feature, needed};
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::LazyLock;

/// The document that the table stands in.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/processor.md");
/// Set to write the document anew.
const UPDATE: &str = "SPINUP_UPDATE_DOCS";

/// An encoding of every form without a VEX, EVEX or XOP prefix that some mode has.
pub(super) fn forms() -> &'static BTreeMap<Code, Instruction> {
    static FORMS: LazyLock<BTreeMap<Code, Instruction>> = LazyLock::new(search);
    &FORMS
}

fn search() -> BTreeMap<Code, Instruction> {
    let prefixes: [&[u8]; 6] = [&[], &[0x66], &[0xF3], &[0xF2], &[0x67], &[0x66, 0xF2]];
    let maps: [&[u8]; 4] = [&[], &[0x0F], &[0x0F, 0x38], &[0x0F, 0x3A]];
    let mut forms = BTreeMap::new();
    for bits in [16, 32, 64] {
        for (prefix, rex_w, map) in prefixes
            .iter()
            .flat_map(|prefix| [false, true].map(|rex_w| (prefix, rex_w)))
            .flat_map(|(prefix, rex_w)| maps.map(|map| (prefix, rex_w && bits == 64, map)))
        {
            for opcode in 0..=u16::MAX {
                let mut bytes = prefix.to_vec();
                bytes.extend(rex_w.then_some(0x48));
                bytes.extend(map);
                bytes.extend(opcode.to_be_bytes());
                bytes.extend([0; 10]);
                bytes.truncate(15);
                let instruction = Decoder::with_ip(bits, &bytes, 0, DecoderOptions::NONE).decode();
                if !instruction.is_invalid() && instruction.code().encoding() == EncodingKind::Legacy {
                    forms.entry(instruction.code()).or_insert(instruction);
                }
            }
        }
    }
    forms
}

fn is_implemented(instruction: &Instruction) -> bool {
    !decode::decode(instruction).lacking
}

/// The names that CPUID's bits have; several where an instruction needs several.
fn feature(code: Code) -> String {
    let names: Vec<String> = code.cpuid_features().iter().map(|feature| format!("{feature:?}")).collect();
    names.join(" and ")
}

fn name(code: Code) -> String {
    format!("{:?}", code.mnemonic()).to_uppercase()
}

/// Mnemonics by feature, and how many forms there are.
#[derive(Default)]
struct Group {
    mnemonics: BTreeSet<String>,
    forms: usize,
}

fn groups(forms: &BTreeMap<Code, Instruction>, implemented: bool) -> BTreeMap<String, Group> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for (&code, _) in forms.iter().filter(|(_, instruction)| is_implemented(instruction) == implemented) {
        let group = groups.entry(feature(code)).or_default();
        group.mnemonics.insert(name(code));
        group.forms += 1;
    }
    groups
}

fn table(groups: &BTreeMap<String, Group>) -> String {
    let mut text = "| CPUID feature | forms | instructions |\n|---|---|---|\n".to_owned();
    for (feature, Group { mnemonics, forms }) in groups {
        let mnemonics: Vec<&str> = mnemonics.iter().map(String::as_str).collect();
        writeln!(text, "| {feature} | {forms} | {} |", mnemonics.join(" ")).expect("writing to a string");
    }
    text
}

/// The features that CPUID turns on and off, and how many forms each does.
fn switches(forms: &BTreeMap<Code, Instruction>) -> String {
    let mut text = "| feature | CPUID | forms |\n|---|---|---|\n".to_owned();
    for &feature in Feature::ALL {
        let Announced { leaf, subleaf, register, bit } = feature.announced();
        let needs_it = |form: &&Instruction| is_implemented(form) && needed(form).any(|needed| needed == feature);
        let count = forms.values().filter(needs_it).count();
        let register = format!("{register:?}").to_uppercase();
        writeln!(text, "| {feature:?} | {leaf:X}H.{subleaf}:{register}.{bit} | {count} |")
            .expect("writing to a string");
    }
    text
}

fn document() -> String {
    let forms = forms();
    let (there, lacking) = (groups(forms, true), groups(forms, false));
    let count = |groups: &BTreeMap<String, Group>| groups.values().map(|group| group.forms).sum::<usize>();
    format!(
        "# What the software processor executes\n\
         \n\
         Written by the test `engine::soft::tests::table` from the decoder's own table; `{UPDATE}=1 cargo test -p vmm table` writes it\n\
         anew. A form is an instruction with operands of certain kinds and sizes, as iced-x86 tells them apart; modes of 16, 32 and 64\n\
         bits are taken together.\n\
         \n\
         Floating point is computed in integers, with the exceptions, the rounding and the NaNs of the manual, so that it gives the same\n\
         bits on every host. RCPPS and RSQRTPS (and their scalar forms) are exact to twelve bits, which is within what the manual\n\
         allows; processors differ there. So they do in the transcendental instructions of x87, which are exact to the last bit but one.\n\
         Of the x87 environment, the opcode and the selectors are not kept, and the data pointer at unmasked exceptions only.\n\
         \n\
         ## Modes\n\
         \n\
         * Real mode, and protected mode of 16 and 32 bits with call, interrupt, trap and task gates and hardware task switches\n\
         \x20 between task-state segments of both sizes.\n\
         * Virtual-8086 mode, with CR4.VME (VIF, VIP, the redirection bit map) and CR4.PVI where CPUID offers VME.\n\
         * 64-bit mode and compatibility mode.\n\
         * No paging, 32-bit paging with 4-Mbyte pages (PSE-36), PAE paging with its directory pointers in registers, 4-level and\n\
         \x20 5-level paging with pages of 2 Mbytes and 1 Gbyte; NX, WP, SMEP, SMAP, global pages and PCIDs.\n\
         * There is no system-management mode: RSM raises #UD. MWAIT waits no longer than PAUSE.\n\
         \n\
         ## Features that CPUID turns on and off\n\
         \n\
         What the table of a vCPU does not announce it does not have: instructions raise #UD, recorded as an event that says so, and\n\
         bits of CR4, IA32_EFER and page-table entries are reserved. TZCNT and LZCNT become BSF and BSR; hints do nothing.\n\
         \n\
         {}\n\
         ## Compared with other processors\n\
         \n\
         What user mode can execute is compared with the host's processor, in code of 64, 32 and 16 bits: random operands, flags, x87\n\
         and SSE registers and memory. In the other modes the same cases, and those of the system instructions, are compared with KVM:\n\
         registers, hidden parts of segment registers, descriptor tables, exceptions with their frames, and what leaves the processor.\n\
         Both are recorded, and the records are replayed on hosts that cannot be asked. A form counts twice where its operand may be a\n\
         register or memory.\n\
         \n\
         The KVM of the record is `kvm_pvm`: it runs user mode on the host's processor, and emulates everything else. Its emulator lacks\n\
         x87 and most of MMX and SSE, which go by no mode, and does some things otherwise than the manual says.\n\
         \n\
         {}\n\
         What is explained, where the manual decides against the other side:\n\
         \n\
         {}\n\
         ## Implemented: {}\n\
         \n\
         {}\n\
         ## Not implemented: {}\n\
         \n\
         These raise #UD and leave an event that names the instruction, and so does everything with a VEX, EVEX or XOP prefix. CPUID\n\
         announces none of them.\n\
         \n\
         {}",
        switches(forms),
        deviations::counts(),
        deviations::explanations(),
        count(&there),
        table(&there),
        count(&lacking),
        table(&lacking)
    )
}

#[test]
fn the_document_says_what_the_decoder_has() {
    let text = document();
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(DOCUMENT, &text).expect("the document can be written");
    }
    let written = std::fs::read_to_string(DOCUMENT).expect("docs/processor.md is part of the repository");
    let first = text.lines().zip(written.lines()).find(|(new, old)| new != old);
    assert!(text == written, "docs/processor.md is out of date, at {first:?}; {UPDATE}=1 writes it anew");
}

/// What the CPUID table of the kernel announces is there to the last form.
#[test]
fn what_cpuid_announces_is_implemented() {
    use CpuidFeature as F;
    let announced = [
        F::FPU,
        F::FPU287,
        F::FPU387,
        F::MMX,
        F::SSE,
        F::SSE2,
        F::SSE3,
        F::SSSE3,
        F::SSE4_1,
        F::SSE4_2,
        F::FXSR,
        F::XSAVE,
        F::XSAVEOPT,
        F::XSAVEC,
        F::POPCNT,
        F::MOVBE,
        F::LZCNT,
        F::CMPXCHG16B,
        F::CX8,
        F::CMOV,
        F::TSC,
        F::MSR,
        F::RDTSCP,
        F::SYSCALL,
        F::SEP,
        F::CLFSH,
        F::X64,
        F::INTEL8086,
        F::INTEL186,
        F::INTEL286,
        F::INTEL386,
        F::INTEL486,
    ];
    let lacking: Vec<Code> = forms()
        .iter()
        .filter(|(code, instruction)| {
            code.cpuid_features().iter().all(|feature| announced.contains(feature)) && !is_implemented(instruction)
        })
        .map(|(&code, _)| code)
        .collect();
    assert_eq!(lacking, []);
}

#[test]
fn the_opcode_map_is_searched_whole() {
    let forms = forms();
    assert!(forms.len() > 1700, "{} forms", forms.len());
    for mnemonic in [Mnemonic::Pcmpestrm64, Mnemonic::Fyl2xp1, Mnemonic::Crc32, Mnemonic::Jmp, Mnemonic::Aam] {
        assert!(forms.keys().any(|code| code.mnemonic() == mnemonic), "{mnemonic:?}");
    }
}
