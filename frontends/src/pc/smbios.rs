//! SMBIOS tables (DMTF DSP0134, version 2.6), at the place where bhyve's `smbiostbl.c` has them: the entry point, and the structures right
//! behind it. With more than 180 vCPUs the MP table reaches so far too, and is cut short, there as here. bhyve writes them for every machine; here a machine has them if asked for. Their texts are \[unverified].

use super::fix_checksum;

/// `SMBIOS_BASE`.
pub(crate) const SMBIOS_BASE: u64 = 0xf_1000;

const ENTRY_POINT_LEN: usize = 31;

/// What the tables tell of the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) sockets: u16,
    /// Cores of each socket.
    pub(crate) cores: u16,
    /// Threads of each core.
    pub(crate) threads: u16,
    /// RAM from 0 on, in bytes.
    pub(crate) lowmem: u64,
    /// RAM from 4 GiB on, in bytes.
    pub(crate) highmem: u64,
}

/// The structures as they grow.
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    longest: u16,
}

impl Structures {
    /// Adds a structure (6.1): type, length, handle, the fields behind them, then the texts and a zero. Returns its handle.
    fn add(&mut self, kind: u8, fields: &[u8], texts: &[&str]) -> u16 {
        let handle = self.count;
        let begin = self.bytes.len();
        self.bytes.extend([kind, 4 + fields.len() as u8]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(fields);
        for text in texts {
            self.bytes.extend(text.bytes().chain([0]));
        }
        // Without texts there are two zeros.
        self.bytes.extend(if texts.is_empty() { &[0, 0][..] } else { &[0] });
        self.count += 1;
        self.longest = self.longest.max((self.bytes.len() - begin) as u16);
        handle
    }
}

/// Bytes of fields, each in its width.
macro_rules! fields {
    ($($value:expr),* $(,)?) => {{
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend($value.to_le_bytes());)*
        bytes
    }};
}

/// The entry point with the structures behind it, for [`SMBIOS_BASE`].
pub(crate) fn build(machine: Machine) -> Vec<u8> {
    let mut structures = Structures::default();
    bios(&mut structures);
    system(&mut structures);
    chassis(&mut structures);
    for socket in 0..machine.sockets {
        processor(&mut structures, socket, machine);
    }
    memory(&mut structures, machine);
    // 7.33: no errors detected at boot. 7.45: the end.
    structures.add(32, &[0; 7], &[]);
    structures.add(127, &[], &[]);

    let Structures { bytes, count, longest } = structures;
    let mut table = vec![0; ENTRY_POINT_LEN];
    table[..4].copy_from_slice(b"_SM_");
    table[5..8].copy_from_slice(&[ENTRY_POINT_LEN as u8, 2, 6]);
    table[8..10].copy_from_slice(&longest.to_le_bytes());
    table[16..21].copy_from_slice(b"_DMI_");
    table[22..24].copy_from_slice(&(bytes.len() as u16).to_le_bytes());
    table[24..28].copy_from_slice(&(SMBIOS_BASE as u32 + ENTRY_POINT_LEN as u32).to_le_bytes());
    table[28..30].copy_from_slice(&count.to_le_bytes());
    table[30] = 0x26;
    // 5.2.1: the intermediate checksum first, for the other one counts it in.
    fix_checksum(&mut table[16..], 5);
    fix_checksum(&mut table, 4);
    table.extend(bytes);
    table
}

/// 7.1, type 0.
fn bios(structures: &mut Structures) {
    /// ISA, PCI, shadowing, boot from CD, selectable boot, EDD.
    const CHARACTERISTICS: u64 = 1 << 4 | 1 << 7 | 1 << 12 | 1 << 15 | 1 << 16 | 1 << 19;
    const ACPI: u8 = 1;
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    const SEGMENT: u16 = 0xf000;
    let versions = [0_u8, 0, 0xff, 0xff];
    let mut bytes = fields![1_u8, 2_u8, SEGMENT, 3_u8, 0_u8, CHARACTERISTICS, ACPI, VIRTUAL_MACHINE];
    bytes.extend(versions);
    structures.add(0, &bytes, &["BHYVE", "1.00", "03/14/2014"]);
}

/// 7.2, type 1.
fn system(structures: &mut Structures) {
    const POWER_SWITCH: u8 = 6;
    const UUID: u128 = 0;
    let bytes = fields![1_u8, 2_u8, 3_u8, 4_u8, UUID, POWER_SWITCH, 5_u8, 6_u8];
    structures.add(1, &bytes, &["FreeBSD", "BHYVE", "1.0", "None", "None", "Virtual Machine"]);
}

/// 7.4, type 3.
fn chassis(structures: &mut Structures) {
    const UNKNOWN: u8 = 2;
    const SAFE: u8 = 3;
    const NONE: u8 = 3;
    let bytes = fields![1_u8, UNKNOWN, 2_u8, 3_u8, 4_u8, SAFE, SAFE, SAFE, NONE, 0_u32, 0_u8, 1_u8, 0_u8, 0_u8];
    structures.add(3, &bytes, &["FreeBSD", "1.0", "None", "None"]);
}

/// 7.5, type 4: one for each socket.
fn processor(structures: &mut Structures, socket: u16, machine: Machine) {
    const CENTRAL: u8 = 3;
    const UNKNOWN: u8 = 2;
    const POPULATED_AND_ENABLED: u8 = 0x41;
    const NO_CACHE: u16 = 0xffff;
    const CAPABLE_OF_64_BITS: u16 = 1 << 2;
    let count = |number: u16| u8::try_from(number).unwrap_or(u8::MAX);
    let (cores, threads) = (count(machine.cores), count(machine.cores.saturating_mul(machine.threads)));
    let bytes = fields![
        1_u8,
        CENTRAL,
        UNKNOWN,
        2_u8,
        0_u64,
        3_u8,
        0_u8,
        0_u16,
        0_u16,
        0_u16,
        POPULATED_AND_ENABLED,
        UNKNOWN,
        NO_CACHE,
        NO_CACHE,
        NO_CACHE,
        4_u8,
        5_u8,
        6_u8,
        cores,
        cores,
        threads,
        CAPABLE_OF_64_BITS,
        0x102_u16
    ];
    structures.add(4, &bytes, &[&format!("CPU #{socket}"), " ", " ", "None", "None", "None"]);
}

/// 7.17 to 7.20, types 16, 17 and 19: one array with one device, mapped below 4 GiB and above.
fn memory(structures: &mut Structures, machine: Machine) {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    const NO_ERROR_INFORMATION: u16 = 0xfffe;
    const UNKNOWN: u8 = 2;
    const UNKNOWN_WIDTH: u16 = 0xffff;
    const UNKNOWN_DETAIL: u16 = 1 << 2;
    let bytes = machine.lowmem + machine.highmem;
    let kib = u32::try_from(bytes >> 10).unwrap_or(0x8000_0000);
    let array =
        structures.add(16, &fields![SYSTEM_BOARD, SYSTEM_MEMORY, NO_CORRECTION, kib, NO_ERROR_INFORMATION, 1_u16], &[]);
    // In MiB; 7FFFH and more are told elsewhere since version 2.7.
    let mib = u16::try_from(bytes >> 20).unwrap_or(0x7fff).min(0x7fff);
    let device = fields![
        array,
        NO_ERROR_INFORMATION,
        UNKNOWN_WIDTH,
        UNKNOWN_WIDTH,
        mib,
        UNKNOWN,
        0_u8,
        1_u8,
        2_u8,
        UNKNOWN,
        UNKNOWN_DETAIL,
        0_u16,
        3_u8,
        4_u8,
        5_u8,
        6_u8,
        0_u8
    ];
    structures.add(17, &device, &[" ", " ", " ", " ", " ", " "]);
    for (begin, len) in [(0, machine.lowmem), (4 << 30, machine.highmem)] {
        if len != 0 {
            let (first, last) = ((begin >> 10) as u32, ((begin + len - 1) >> 10) as u32);
            structures.add(19, &fields![first, last, array, 1_u8], &[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sum;
    use super::*;

    /// The structures of a table: type, handle, fields, texts.
    fn parse(table: &[u8]) -> Vec<(u8, u16, Vec<u8>, Vec<String>)> {
        let mut rest = &table[ENTRY_POINT_LEN..];
        let mut parsed = Vec::new();
        while !rest.is_empty() {
            let len = usize::from(rest[1]);
            let end = len + rest[len..].windows(2).position(|two| two == [0, 0]).expect("two zeros end it");
            let texts = rest[len..end].split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
            let handle = u16::from_le_bytes([rest[2], rest[3]]);
            parsed.push((rest[0], handle, rest[4..len].to_vec(), texts.filter(|text| !text.is_empty()).collect()));
            rest = &rest[end + 2..];
        }
        parsed
    }

    #[test]
    fn the_structures_follow_the_entry_point() {
        let machine = Machine { sockets: 2, cores: 3, threads: 2, lowmem: 3 << 30, highmem: 1 << 30 };
        let table = build(machine);
        assert_eq!((sum(&table[..31]), sum(&table[16..31])), (0, 0));
        assert_eq!(usize::from(u16::from_le_bytes([table[22], table[23]])), table.len() - ENTRY_POINT_LEN);
        let structures = parse(&table);
        assert_eq!(usize::from(u16::from_le_bytes([table[28], table[29]])), structures.len());
        let kinds: Vec<u8> = structures.iter().map(|(kind, ..)| *kind).collect();
        assert_eq!(kinds, [0, 1, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
        // Lengths that the specification gives for version 2.6.
        let lengths: Vec<usize> = structures.iter().map(|(_, _, fields, _)| 4 + fields.len()).collect();
        assert_eq!(lengths, [24, 27, 21, 42, 42, 15, 28, 15, 15, 11, 4]);
        assert_eq!(structures.iter().map(|(_, handle, ..)| *handle).collect::<Vec<_>>(), (0..11).collect::<Vec<_>>());
        assert_eq!(structures[3].2[31..34], [3, 3, 6], "cores, enabled cores, threads");
        assert_eq!(structures[8].2[..8], [0, 0, 0x40, 0, 0xff, 0xff, 0x4f, 0], "4 GiB and up, in KiB");
    }
}
