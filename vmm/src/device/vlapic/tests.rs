use super::offset::*;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn enabled() -> Vlapic {
    let mut vlapic = Vlapic::new(0);
    vlapic.mmio_write(SVR, 0x1ff, 0);
    vlapic
}

fn x2apic(vcpuid: u32) -> Vlapic {
    let mut vlapic = Vlapic::new(vcpuid);
    vlapic.set_x2apic(true);
    vlapic.msr_write(0x80f, 0x1ff, 0).expect("SVR can be written");
    vlapic
}

/// SDM 3A 11.4.7.1, and history.md 2.0.
#[test]
fn power_up_state() {
    let bsp = Vlapic::new(0);
    assert_eq!(bsp.apic_base(), 0xfee0_0900);
    let ap = Vlapic::new(3);
    assert_eq!(ap.apic_base(), 0xfee0_0800);
    assert_eq!(ap.mmio_read(ID, 0), 0x0300_0000);
    assert_eq!(ap.mmio_read(VERSION, 0), 0x0006_0014);
    assert_eq!(ap.mmio_read(DFR, 0), 0xffff_ffff);
    assert_eq!(ap.mmio_read(LDR, 0), 0);
    assert_eq!(ap.mmio_read(SVR, 0), 0xff);
    for lvt in [LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR] {
        assert_eq!(ap.mmio_read(lvt, 0), LVT_MASKED);
    }
    for zero in [TPR, PPR, EOI, ESR, ICR_LOW, ICR_HIGH, INITIAL_COUNT, CURRENT_COUNT, DIVIDE_CONFIGURATION] {
        assert_eq!(ap.mmio_read(zero, 0), 0);
    }
}

#[test]
fn reset_forgets_everything_but_mode_and_identity() {
    for mode in [false, true] {
        let mut fresh = Vlapic::new(17);
        fresh.set_x2apic(mode);
        let mut used = fresh.clone();
        used.write(SVR, 0x1ff, 0);
        for offset in [LVT_CMCI, LVT_TIMER, LVT_THERMAL, LVT_PMC, LVT_LINT0, LVT_LINT1, LVT_ERROR] {
            used.write(offset, 0x31, 0);
        }
        used.write(TPR, 0x20, 0);
        used.write(DIVIDE_CONFIGURATION, 0xb, 0);
        used.write(INITIAL_COUNT, 1000, 0);
        used.mmio_write(LDR, 0x0100_0000, 0);
        used.mmio_write(DFR, 0, 0);
        used.command(Icr::from_bits(0x1_0000_0000_4030));
        used.accept(0x61, true);
        used.acknowledge(0x61);
        used.accept(0x62, false);
        used.send_illegal_vector();
        used.write(ESR, 0, 0);
        used.send_illegal_vector();
        used.reset();
        assert_eq!(used, fresh);
    }
}

#[test]
fn apic_base_stays_as_it_is() {
    let mut vlapic = Vlapic::new(0);
    assert_eq!(vlapic.write_apic_base(0xfee0_0900), Ok(()));
    assert_eq!(vlapic.msr_write(MSR_APIC_BASE, 0xfee0_0d00, 0), Err(GeneralProtection));
    assert_eq!(vlapic.msr_read(MSR_APIC_BASE, 0), Ok(0xfee0_0900));
    vlapic.set_x2apic(true);
    assert_eq!(vlapic.msr_read(MSR_APIC_BASE, 0), Ok(0xfee0_0d00));
    vlapic.set_x2apic(false);
    assert_eq!(vlapic.apic_base(), 0xfee0_0900);
}

#[test]
fn mode_decides_identity() {
    let mut vlapic = Vlapic::new(0x123);
    vlapic.set_x2apic(true);
    assert_eq!(vlapic.msr_read(0x802, 0), Ok(0x123));
    assert_eq!(vlapic.msr_read(0x80d, 0), Ok(0x0012_0008));
    assert_eq!(vlapic.logical_id(), LogicalId { ldr: 0x0012_0008, dfr: 0, x2apic: true });
    assert_eq!(vlapic.mmio_read(VERSION, 0), 0, "no MMIO in x2APIC mode");
    vlapic.set_x2apic(false);
    assert_eq!(vlapic.logical_id(), LogicalId { ldr: 0, dfr: 0xffff_ffff, x2apic: false });
    assert_eq!(vlapic.msr_read(0x802, 0), Err(GeneralProtection), "no MSRs in xAPIC mode");
    assert_eq!(vlapic.msr_write(0x808, 0, 0), Err(GeneralProtection));
}

#[test]
fn logical_id_registers_keep_their_defined_bits() {
    let mut vlapic = enabled();
    vlapic.mmio_write(LDR, 0x12ff_ffff, 0);
    vlapic.mmio_write(DFR, 0, 0);
    assert_eq!((vlapic.mmio_read(LDR, 0), vlapic.mmio_read(DFR, 0)), (0x1200_0000, 0x0fff_ffff));
    vlapic.mmio_write(ID, 0x0500_0000, 0);
    assert_eq!(vlapic.mmio_read(ID, 0), 0);
}

#[test]
fn icr_is_handed_out() {
    let mut vlapic = enabled();
    assert_eq!(vlapic.mmio_write(ICR_HIGH, 0x0100_0000, 0), Effect::None);
    let Effect::Icr(icr) = vlapic.mmio_write(ICR_LOW, 0xd500, 0) else { panic!("no command") };
    assert_eq!((icr.delivery_mode(), icr.dest(false)), (DeliveryMode::Init, 1));
    assert!(!icr.pending(), "delivery status is never pending");
    assert_eq!((vlapic.mmio_read(ICR_LOW, 0), vlapic.mmio_read(ICR_HIGH, 0)), (0xc500, 0x0100_0000));

    let mut vlapic = x2apic(0);
    let Ok(Effect::Icr(icr)) = vlapic.msr_write(0x830, 0x0000_0101_0000_0608, 0) else { panic!("no command") };
    assert_eq!((icr.delivery_mode(), icr.dest(true), icr.vector()), (DeliveryMode::Startup, 0x101, 8));
    assert_eq!(vlapic.msr_read(0x830, 0), Ok(0x0000_0101_0000_0608));
}

/// SDM 3A table 11-6: which of 0x800 to 0x8ff can be read and written in x2APIC mode.
#[test]
fn x2apic_registers_that_exist() {
    let readable: BTreeSet<u32> = [0x02, 0x03, 0x08, 0x0a, 0x0d, 0x0f]
        .into_iter()
        .chain(0x10..=0x28)
        .chain([0x2f, 0x30])
        .chain(0x32..=0x39)
        .chain([0x3e])
        .collect();
    let writable: BTreeSet<u32> =
        [0x08, 0x0b, 0x0f, 0x28, 0x2f, 0x30].into_iter().chain(0x32..=0x38).chain([0x3e, 0x3f]).collect();
    for index in 0..0x100 {
        let mut vlapic = x2apic(0);
        assert_eq!(vlapic.msr_read(0x800 + index, 0).is_ok(), readable.contains(&index), "RDMSR {index:#x}");
        assert_eq!(vlapic.msr_write(0x800 + index, 0, 0).is_ok(), writable.contains(&index), "WRMSR {index:#x}");
        // Only the ICR has a high half.
        let high = vlapic.msr_write(0x800 + index, 1 << 32, 0);
        assert_eq!(high.is_ok(), index == 0x30, "WRMSR {index:#x}, bit 32");
    }
}

#[test]
fn x2apic_reserved_bits_fault() {
    let defined = [
        (0x808, 0xff),
        (0x80b, 0),
        (0x80f, 0x3ff),
        (0x828, 0),
        (0x82f, 0x1_17ff),
        (0x832, 0x3_10ff),
        (0x833, 0x1_17ff),
        (0x834, 0x1_17ff),
        (0x835, 0x1_f7ff),
        (0x836, 0x1_f7ff),
        (0x837, 0x1_10ff),
        (0x838, 0xffff_ffff),
        (0x83e, 0b1011),
        (0x83f, 0xff),
        (0x830, 0xffff_ffff_000c_dfff_u64),
    ];
    for (msr, defined) in defined {
        for bit in 0..64 {
            let result = x2apic(0).msr_write(msr, 1 << bit, 0);
            assert_eq!(result.is_ok(), defined >> bit & 1 == 1, "MSR {msr:#x}, bit {bit}");
        }
    }
}

#[test]
fn self_ipi_requests_its_vector() {
    let mut vlapic = x2apic(2);
    assert_eq!(vlapic.msr_write(0x83f, 0x41, 0), Ok(Effect::None));
    assert_eq!(vlapic.pending(), Some(0x41));
    vlapic.msr_write(0x83f, 0x0f, 0).expect("an illegal vector is no fault");
    vlapic.msr_write(0x828, 0, 0).expect("ESR takes a 0");
    assert_eq!(vlapic.msr_read(0x828, 0), Ok(0x20));
}

#[test]
fn level_triggered_interrupts_tell_the_io_apic() {
    let mut vlapic = enabled();
    assert!(vlapic.accept(0x50, true));
    assert!(vlapic.accept(0x91, false));
    assert_eq!(vlapic.mmio_read(TMR0 + 0x20, 0), 1 << 16);
    vlapic.acknowledge(0x50);
    vlapic.acknowledge(0x91);
    assert_eq!(vlapic.mmio_write(EOI, 0, 0), Effect::Eoi { vector: 0x91, level: false });
    assert_eq!(vlapic.mmio_write(EOI, 0, 0), Effect::Eoi { vector: 0x50, level: true });
    assert_eq!(vlapic.mmio_write(EOI, 0, 0), Effect::None, "nothing in service");
    assert!(vlapic.accept(0x50, false));
    assert_eq!(vlapic.mmio_read(TMR0 + 0x20, 0), 0, "the trigger mode is that of the last request");
}

/// SDM 3A 11.8.3.1, the three cases of table 11-4.
#[test]
fn processor_priority() {
    let mut vlapic = enabled();
    vlapic.accept(0x57, false);
    vlapic.acknowledge(0x57);
    for (tpr, ppr) in [(0x4f, 0x50), (0x5a, 0x5a), (0x63, 0x63)] {
        vlapic.mmio_write(TPR, tpr, 0);
        assert_eq!(vlapic.mmio_read(PPR, 0), ppr);
    }
    vlapic.set_cr8(7);
    assert_eq!((vlapic.mmio_read(TPR, 0), vlapic.cr8()), (0x70, 7));
}

#[test]
fn software_disabled_takes_nothing() {
    let mut vlapic = Vlapic::new(0);
    assert!(!vlapic.accept(0x40, false));
    vlapic.mmio_write(LVT_TIMER, 0x40, 0);
    assert_eq!(vlapic.mmio_read(LVT_TIMER, 0), LVT_MASKED | 0x40);
    vlapic.mmio_write(SVR, 0x1ff, 0);
    assert!(vlapic.accept(0x40, false));
    vlapic.mmio_write(LVT_ERROR, 0x41, 0);
    vlapic.mmio_write(INITIAL_COUNT, 10_000, 0);
    vlapic.mmio_write(SVR, 0xff, 0);
    assert_eq!(vlapic.mmio_read(LVT_ERROR, 0), LVT_MASKED | 0x41);
    assert_eq!(vlapic.next_deadline(), None);
}

#[test]
fn errors_show_when_esr_is_written() {
    let mut vlapic = enabled();
    vlapic.mmio_write(LVT_ERROR, 0x30, 0);
    assert!(vlapic.accept(0x0f, false), "the error is to be noticed");
    assert_eq!(vlapic.pending(), Some(0x30));
    assert_eq!(vlapic.mmio_read(ESR, 0), 0);
    assert!(vlapic.send_illegal_vector());
    vlapic.mmio_write(ESR, 0, 0);
    assert_eq!(vlapic.mmio_read(ESR, 0), 0x60);
    vlapic.mmio_write(ESR, 0, 0);
    assert_eq!(vlapic.mmio_read(ESR, 0), 0);

    // An error entry that is itself in error ends the matter.
    vlapic.mmio_write(LVT_ERROR, 0x05, 0);
    assert!(!vlapic.send_illegal_vector());
    // An illegal vector elsewhere is reported through the error entry.
    vlapic.mmio_write(LVT_ERROR, 0x33, 0);
    vlapic.mmio_write(LVT_TIMER, 0x07, 0);
    assert_eq!(vlapic.local_interrupt(Lvt::Timer), LocalInterrupt::Requested { vector: 0x33 });
}

#[test]
fn local_interrupt_pins() {
    let mut vlapic = Vlapic::new(0);
    assert!(vlapic.accepts_extint(), "a disabled local APIC is a wire");
    assert_eq!(vlapic.local_interrupt(Lvt::Lint0), LocalInterrupt::ExtInt);
    assert_eq!(vlapic.local_interrupt(Lvt::Lint1), LocalInterrupt::Nmi);
    assert_eq!(vlapic.local_interrupt(Lvt::Pmc), LocalInterrupt::Dropped);

    vlapic.mmio_write(SVR, 0x1ff, 0);
    assert!(!vlapic.accepts_extint());
    assert_eq!(vlapic.local_interrupt(Lvt::Lint0), LocalInterrupt::Dropped);
    for (entry, outcome) in [
        (0x0700, LocalInterrupt::ExtInt),
        (0x0400, LocalInterrupt::Nmi),
        (0x0021, LocalInterrupt::Requested { vector: 0x21 }),
        (0x0200, LocalInterrupt::Dropped),
        (0x0500, LocalInterrupt::Dropped),
    ] {
        vlapic.mmio_write(LVT_LINT0, entry, 0);
        assert_eq!(vlapic.accepts_extint(), outcome == LocalInterrupt::ExtInt);
        assert_eq!(vlapic.local_interrupt(Lvt::Lint0), outcome);
    }
}

/// `APIC_LVT_LINT0` to `APIC_LVT_CMCI`.
#[test]
fn local_interrupts_by_number() {
    for (number, lvt) in Lvt::ALL.into_iter().enumerate() {
        assert_eq!(lvt as usize, number);
        assert_eq!(Lvt::from_number(number as i32), Some(lvt));
    }
    assert_eq!((Lvt::from_number(7), Lvt::from_number(-1)), (None, None));
}

#[test]
fn timer_raises_its_vector() {
    let mut vlapic = enabled();
    vlapic.mmio_write(LVT_TIMER, 0xef, 0);
    vlapic.mmio_write(DIVIDE_CONFIGURATION, 0xb, 0);
    vlapic.mmio_write(INITIAL_COUNT, 128 << 10, 0);
    let deadline = vlapic.next_deadline().expect("the timer runs");
    assert_eq!(deadline, 976_563, "1/1024 s, rounded up");
    assert_eq!(vlapic.mmio_read(CURRENT_COUNT, deadline / 2), (64 << 10) + 1);
    assert!(!vlapic.advance(deadline - 1));
    assert!(vlapic.advance(deadline));
    assert_eq!((vlapic.pending(), vlapic.next_deadline()), (Some(0xef), None));

    vlapic.mmio_write(LVT_TIMER, LVT_TIMER_PERIODIC | LVT_MASKED | 0xef, 0);
    vlapic.acknowledge(0xef);
    vlapic.mmio_write(EOI, 0, 0);
    vlapic.mmio_write(INITIAL_COUNT, 128 << 10, 0);
    assert!(!vlapic.advance(deadline), "masked");
    assert_eq!(vlapic.next_deadline(), Some(1_953_125), "but it goes on");
    vlapic.mmio_write(SVR, 0xff, 0);
    vlapic.mmio_write(SVR, 0x1ff, 5_000_000);
    assert_eq!(vlapic.next_deadline(), Some(5_976_563), "enabling starts a periodic timer again");
}

#[derive(Clone, Debug)]
enum Step {
    Accept(u8),
    Take,
    Eoi,
    Tpr(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (16_u8..).prop_map(Step::Accept),
        4 => Just(Step::Take),
        2 => Just(Step::Eoi),
        1 => any::<u8>().prop_map(Step::Tpr),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Requests, acknowledgements and EOIs against sets of vectors (SDM 3A 11.8.3, 11.8.4).
    #[test]
    fn priorities_agree_with_the_naive_model(steps in steps()) {
        let mut vlapic = enabled();
        let (mut irr, mut isr, mut tpr) = (BTreeSet::new(), BTreeSet::new(), 0_u8);
        for step in steps {
            match step {
                Step::Accept(vector) => {
                    prop_assert!(vlapic.accept(vector, false));
                    irr.insert(vector);
                }
                Step::Take => {
                    let class = isr.last().map_or(0, |v: &u8| v / 16).max(tpr / 16);
                    let expected = irr.last().copied().filter(|v: &u8| v / 16 > class);
                    prop_assert_eq!(vlapic.pending(), expected);
                    if let Some(vector) = expected {
                        vlapic.acknowledge(vector);
                        irr.remove(&vector);
                        isr.insert(vector);
                    }
                }
                Step::Eoi => {
                    let expected = isr.pop_last().map_or(Effect::None, |vector| Effect::Eoi { vector, level: false });
                    prop_assert_eq!(vlapic.mmio_write(EOI, 0, 0), expected);
                }
                Step::Tpr(value) => {
                    vlapic.mmio_write(TPR, value.into(), 0);
                    tpr = value;
                }
            }
            for (base, set) in [(IRR0, &irr), (ISR0, &isr)] {
                for word in 0..8_u8 {
                    let expected = (0..32).filter(|bit| set.contains(&(word * 32 + bit))).fold(0, |bits, bit| bits | 1 << bit);
                    prop_assert_eq!(vlapic.mmio_read(base + u16::from(word) * 16, 0), expected);
                }
            }
            prop_assert_eq!(vlapic.mmio_read(PPR, 0) >> 4, u32::from(isr.last().map_or(0, |v| v / 16).max(tpr / 16)));
        }
    }

    /// No access panics, and what can be read back after a write is the defined part of what was written.
    #[test]
    fn any_access_is_answered(offset in 0_u16..0x1000, value: u32, msr in 0x800_u32..0xc00, wide: u64) {
        let mut vlapic = enabled();
        vlapic.mmio_write(offset, value, 1000);
        let read = vlapic.mmio_read(offset, 1000);
        if let Some(lvt) = Lvt::from_offset(offset) {
            prop_assert_eq!(read, value & lvt.writable());
        }
        let mut vlapic = x2apic(1);
        if vlapic.msr_write(msr, wide, 1000).is_ok() && ![0x80b, 0x828, 0x83f].contains(&msr) {
            prop_assert!(vlapic.msr_read(msr, 1000).is_ok());
        }
    }
}
