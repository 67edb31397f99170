//! The 8042 keyboard controller, as far as nobody types: its status, its command byte, its output port, and the pulse that resets the PC.
//!
//! Bit 1 of the output port is the A20 gate, and bit 0 the processor's reset. bhyve keeps the port as it is written and does nothing
//! about it (`atkbdc.c`): no address line of a VM can be masked, and only the pulse (command FEH) resets. \[read] So it is here.

use super::{Effect, Reaction};
use vmm::abi::suspend;

/// Data.
pub(super) const DATA: u16 = 0x60;
/// Status when read, command when written.
pub(super) const STATUS: u16 = 0x64;

mod command {
    pub(super) const READ_COMMAND_BYTE: u8 = 0x20;
    pub(super) const WRITE_COMMAND_BYTE: u8 = 0x60;
    pub(super) const DISABLE_AUX: u8 = 0xa7;
    pub(super) const ENABLE_AUX: u8 = 0xa8;
    pub(super) const TEST_AUX: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const DISABLE_KEYBOARD: u8 = 0xad;
    pub(super) const ENABLE_KEYBOARD: u8 = 0xae;
    pub(super) const READ_INPUT_PORT: u8 = 0xc0;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub(super) const PULSE_RESET: u8 = 0xfe;
}

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SYSTEM: u8 = 1 << 2;
const STATUS_LAST_WAS_COMMAND: u8 = 1 << 3;
const STATUS_KEYBOARD_UNLOCKED: u8 = 1 << 4;

const BYTE_KEYBOARD_DISABLED: u8 = 1 << 4;
const BYTE_AUX_DISABLED: u8 = 1 << 5;

pub(super) struct Kbdc {
    command_byte: u8,
    /// The output port as it was written; 0 at first.
    output_port: u8,
    /// What the next read of [`DATA`] returns.
    output: Option<u8>,
    /// The command whose parameter the next write of [`DATA`] is.
    awaiting: Option<u8>,
    last_was_command: bool,
}

impl Kbdc {
    pub(super) fn new() -> Kbdc {
        Kbdc {
            command_byte: BYTE_KEYBOARD_DISABLED | BYTE_AUX_DISABLED,
            output_port: 0,
            output: None,
            awaiting: None,
            last_was_command: false,
        }
    }

    /// IN; `None` where bhyve's handler refuses the access.
    pub(super) fn read(&mut self, port: u16, bytes: u8) -> Option<u32> {
        if bytes != 1 {
            return None;
        }
        if port == DATA {
            return Some(self.output.take().unwrap_or_default().into());
        }
        let mut status = STATUS_SYSTEM | STATUS_KEYBOARD_UNLOCKED;
        if self.output.is_some() {
            status |= STATUS_OUTPUT_FULL;
        }
        if self.last_was_command {
            status |= STATUS_LAST_WAS_COMMAND;
        }
        Some(status.into())
    }

    /// OUT; `None` where bhyve's handler refuses the access.
    pub(super) fn write(&mut self, port: u16, bytes: u8, data: u32) -> Option<Reaction> {
        if bytes != 1 {
            return None;
        }
        let data = data as u8;
        self.last_was_command = port == STATUS;
        if port == DATA {
            match self.awaiting.take() {
                Some(command::WRITE_COMMAND_BYTE) => self.command_byte = data,
                Some(command::WRITE_OUTPUT_PORT) => self.output_port = data,
                _ => {}
            }
            return Some(Reaction::NOTHING);
        }
        self.awaiting = None;
        match data {
            command::READ_COMMAND_BYTE => self.output = Some(self.command_byte),
            command::WRITE_COMMAND_BYTE | command::WRITE_OUTPUT_PORT => self.awaiting = Some(data),
            command::DISABLE_AUX => self.command_byte |= BYTE_AUX_DISABLED,
            command::ENABLE_AUX => self.command_byte &= !BYTE_AUX_DISABLED,
            command::TEST_AUX | command::TEST_KEYBOARD | command::READ_INPUT_PORT => self.output = Some(0),
            command::READ_OUTPUT_PORT => self.output = Some(self.output_port),
            command::SELF_TEST => self.output = Some(0x55),
            command::DISABLE_KEYBOARD => self.command_byte |= BYTE_KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.command_byte &= !BYTE_KEYBOARD_DISABLED,
            command::PULSE_RESET => return Some(Reaction::of(Some(Effect::Suspend(suspend::RESET)))),
            _ => {}
        }
        Some(Reaction::NOTHING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_resets() {
        let mut kbdc = Kbdc::new();
        assert_eq!(kbdc.read(STATUS, 1).expect("8 bits") & 3, 0, "nothing to read, ready for a command");
        assert_eq!(kbdc.write(STATUS, 1, 0xfe).and_then(|r| r.effect), Some(Effect::Suspend(suspend::RESET)));
        assert_eq!(kbdc.read(STATUS, 2), None);
    }

    /// A20 off by bit 1, reset by bit 0: the port says what was written, and nothing comes of it.
    #[test]
    fn the_output_port_is_kept_and_does_nothing() {
        let mut kbdc = Kbdc::new();
        for port in [0xdd, 0xdf, 0xfe, 0x00] {
            assert_eq!(kbdc.write(STATUS, 1, 0xd1), Some(Reaction::NOTHING));
            assert_eq!(kbdc.write(DATA, 1, port), Some(Reaction::NOTHING));
            assert_eq!(kbdc.write(STATUS, 1, 0xd0), Some(Reaction::NOTHING));
            assert_eq!(kbdc.read(DATA, 1), Some(port));
        }
    }

    #[test]
    fn the_command_byte_is_kept() {
        let mut kbdc = Kbdc::new();
        kbdc.write(STATUS, 1, 0x60);
        kbdc.write(DATA, 1, 0x47);
        kbdc.write(STATUS, 1, 0x20);
        assert_eq!(kbdc.read(STATUS, 1).expect("8 bits") & 1, 1);
        assert_eq!(kbdc.read(DATA, 1), Some(0x47));
        assert_eq!(kbdc.read(STATUS, 1).expect("8 bits") & 1, 0);
    }
}
