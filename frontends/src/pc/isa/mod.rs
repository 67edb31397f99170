//! Devices on the ISA bus that a machine has only if asked for ([`IsaDevice`]).

pub(crate) mod fw_cfg;

use super::uart::Uart;
use super::{Effect, Inout, Reaction, uart_access};
use crate::console::Stream;
use crate::{Console, IsaDevice, IsaDevices};
use fw_cfg::FwCfg;
use std::io::Write as _;
use vmm::abi::suspend;

/// COM2, and its interrupt.
const COM2: u16 = 0x2f8;
const COM2_LAST: u16 = 0x2ff;
const COM2_IRQ: u8 = 3;
/// The debug consoles, and what both read as (QEMU, `hw/char/debugcon.c`; Bochs, `port_e9_hack`).
const DEBUGCON: u16 = 0xe9;
const BIOS_DEBUGCON: u16 = 0x402;
const DEBUGCON_READS: u32 = 0xe9;
/// `isa-debug-exit` as kvm-unit-tests asks for it (`iobase=0xf4,iosize=0x4`).
const DEBUG_EXIT: u16 = 0xf4;
const DEBUG_EXIT_LAST: u16 = 0xf7;
/// `pc-testdev`: a port for each of the I/O APIC's first 24 pins (QEMU, `hw/misc/pc-testdev.c`).
const IRQ_PORT: u16 = 0x2000;
const IRQ_PORT_LAST: u16 = IRQ_PORT + 23;
/// System control port A.
const PORT_92: u16 = 0x92;
const PORT_92_FAST_RESET: u8 = 1 << 0;
const PORT_92_A20: u8 = 1 << 1;

/// The devices that are there.
pub(super) struct Isa {
    devices: IsaDevices,
    fw_cfg: Option<FwCfg>,
    com2: Uart,
    debug: Console,
    port_92: u8,
}

impl Isa {
    /// The devices after power-up; COM2 and the debug consoles write to streams of their own.
    pub(super) fn new(devices: IsaDevices, fw_cfg: Option<FwCfg>, console: &Console) -> Isa {
        let com2 = Uart::new(&console.stream(Stream::Com2));
        // A20 is open from the start: the reset vector is far above it.
        Isa { devices, fw_cfg, com2, debug: console.stream(Stream::Debug), port_92: PORT_92_A20 }
    }

    /// The firmware configuration.
    pub(super) fn fw_cfg(&mut self) -> Option<&mut FwCfg> {
        self.fw_cfg.as_mut()
    }

    /// An access to a port; `None` where none of these devices is, or answers an access of this width.
    pub(super) fn inout(&mut self, access: Inout) -> Option<Reaction> {
        let Inout { port, bytes, data } = access;
        let has = |device| self.devices.has(device);
        match port {
            fw_cfg::SELECTOR..=fw_cfg::DMA_LAST if has(IsaDevice::FwCfg) => self.fw_cfg.as_mut()?.inout(access),
            DEBUGCON if has(IsaDevice::Debugcon) && bytes == 1 => Some(self.debug_console(data)),
            BIOS_DEBUGCON if has(IsaDevice::BiosDebugcon) && bytes == 1 => Some(self.debug_console(data)),
            DEBUG_EXIT..=DEBUG_EXIT_LAST if has(IsaDevice::DebugExit) => {
                Some(data.map_or(Reaction::NOTHING, |data| Reaction::of(Some(Effect::Exit(debug_exit_status(data))))))
            }
            IRQ_PORT..=IRQ_PORT_LAST if has(IsaDevice::IrqPort) => {
                let line = (port - IRQ_PORT) as u8;
                Some(
                    data.map_or(Reaction::NOTHING, |level| {
                        Reaction::of(Some(Effect::SetIrq { line, high: level != 0 }))
                    }),
                )
            }
            COM2..=COM2_LAST if has(IsaDevice::Com2) => uart_access(&mut self.com2, access, COM2, COM2_IRQ),
            PORT_92 if has(IsaDevice::Port92) && bytes == 1 => Some(self.port_92(data)),
            _ => None,
        }
    }

    fn debug_console(&mut self, data: Option<u32>) -> Reaction {
        let Some(data) = data else { return Reaction::value(DEBUGCON_READS) };
        self.debug.write_all(&[data as u8]).expect("a console takes everything");
        Reaction::NOTHING
    }

    /// Bit 0, when it rises, resets (QEMU, `hw/i386/port92.c`). Bit 1 is kept, and changes nothing: A20 is always open under bhyve, which
    /// has neither this port nor anything in vmm.ko that could mask an address, and under KVM, which has nothing of the kind either.
    fn port_92(&mut self, data: Option<u32>) -> Reaction {
        let Some(data) = data else { return Reaction::value(self.port_92.into()) };
        let data = data as u8;
        let rises = data & !self.port_92 & PORT_92_FAST_RESET != 0;
        self.port_92 = data & (PORT_92_FAST_RESET | PORT_92_A20);
        Reaction::of(rises.then_some(Effect::Suspend(suspend::RESET)))
    }
}

/// `exit((value << 1) | 1)`, of which a process's status has eight bits (QEMU, `hw/misc/debugexit.c`).
fn debug_exit_status(value: u32) -> i32 {
    i32::from((value << 1 | 1) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isa(devices: &[IsaDevice]) -> (Isa, Console) {
        let console = Console::new();
        (Isa::new(devices.iter().copied().collect(), None, &console), console)
    }

    fn write(isa: &mut Isa, port: u16, bytes: u8, data: u32) -> Option<Option<Effect>> {
        isa.inout(Inout { port, bytes, data: Some(data) }).map(|reaction| reaction.effect)
    }

    fn read(isa: &mut Isa, port: u16, bytes: u8) -> Option<u32> {
        isa.inout(Inout { port, bytes, data: None }).map(|reaction| reaction.value)
    }

    #[test]
    fn nothing_answers_unless_asked_for() {
        let (mut isa, console) = isa(&[]);
        for port in 0..=u16::MAX {
            assert_eq!(write(&mut isa, port, 1, 1), None, "{port:#x}");
            assert_eq!(read(&mut isa, port, 1), None, "{port:#x}");
        }
        assert!(console.output(Stream::Debug).is_empty());
    }

    #[test]
    fn debug_consoles_print_and_say_that_they_are_there() {
        let (mut isa, console) = isa(&[IsaDevice::Debugcon, IsaDevice::BiosDebugcon]);
        for (port, byte) in [(0xe9, b'a'), (0x402, b'b')] {
            assert_eq!(read(&mut isa, port, 1), Some(0xe9));
            assert_eq!(write(&mut isa, port, 1, byte.into()), Some(None));
        }
        assert_eq!(console.output(Stream::Debug), b"ab");
        assert_eq!(read(&mut isa, 0x402, 2), None, "bhyve's PM1 enable register, if there is one");
    }

    #[test]
    fn debug_exit_ends_with_an_odd_status() {
        let (mut isa, _) = isa(&[IsaDevice::DebugExit]);
        for (value, status) in [(0, 1), (1, 3), (0x10, 0x21), (0x80, 1), (0xffff_ffff, 0xff)] {
            assert_eq!(write(&mut isa, 0xf4, 4, value), Some(Some(Effect::Exit(status))));
        }
        assert_eq!(read(&mut isa, 0xf4, 1), Some(0));
        assert_eq!(write(&mut isa, 0xf8, 1, 0), None);
    }

    #[test]
    fn interrupt_lines_follow_what_is_written() {
        let (mut isa, _) = isa(&[IsaDevice::IrqPort]);
        assert_eq!(write(&mut isa, 0x2000 + 23, 1, 1), Some(Some(Effect::SetIrq { line: 23, high: true })));
        assert_eq!(write(&mut isa, 0x2005, 1, 0), Some(Some(Effect::SetIrq { line: 5, high: false })));
        assert_eq!(write(&mut isa, 0x2018, 1, 1), None);
    }

    #[test]
    fn port_92_resets_on_a_rising_edge() {
        let (mut isa, _) = isa(&[IsaDevice::Port92]);
        assert_eq!(read(&mut isa, 0x92, 1), Some(2));
        assert_eq!(write(&mut isa, 0x92, 1, 0), Some(None));
        assert_eq!(write(&mut isa, 0x92, 1, 3), Some(Some(Effect::Suspend(suspend::RESET))));
        assert_eq!(write(&mut isa, 0x92, 1, 3), Some(None));
        assert_eq!(read(&mut isa, 0x92, 1), Some(3));
    }

    #[test]
    fn the_second_uart_has_a_stream_and_an_interrupt_of_its_own() {
        let (mut isa, console) = isa(&[IsaDevice::Com2]);
        assert_eq!(write(&mut isa, 0x2f8, 1, b'x'.into()), Some(None));
        assert_eq!(write(&mut isa, 0x2f9, 1, 2), Some(Some(Effect::PulseIrq(3))));
        assert_eq!((console.output(Stream::Com2), console.serial()), (b"x".to_vec(), Vec::new()));
    }
}
