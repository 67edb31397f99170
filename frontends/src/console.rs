//! What a frontend leaves behind for people to read: its serial port and its standard error.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// How many bytes of the serial port are kept, and how many lines of standard error: a guest that writes in a loop must
/// not eat the machine's memory.
const SERIAL_CAPACITY: usize = 4 << 20;
const STDERR_CAPACITY: usize = 10_000;

/// The output of one cell's frontend; clones are the same console. Readable while the cell runs and after it has ended.
#[derive(Clone, Debug, Default)]
pub struct Console {
    printed: Arc<Mutex<Printed>>,
}

#[derive(Debug, Default)]
struct Printed {
    serial: Vec<u8>,
    stderr: Vec<String>,
}

impl Console {
    /// A console on which nothing has been printed.
    #[must_use]
    pub fn new() -> Console {
        Console::default()
    }

    /// The bytes that the guest sent to COM1; of very many, the first 4 MiB.
    #[must_use]
    pub fn serial(&self) -> Vec<u8> {
        self.printed.lock().serial.clone()
    }

    /// The lines that the frontend wrote to its standard error; of very many, the first 10,000.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.printed.lock().stderr.clone()
    }

    pub(crate) fn print_line(&self, line: &str) {
        let stderr = &mut self.printed.lock().stderr;
        if stderr.len() < STDERR_CAPACITY {
            stderr.push(line.to_owned());
        }
    }
}

/// The serial port's end of the console.
impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let serial = &mut self.printed.lock().serial;
        let kept = bytes.len().min(SERIAL_CAPACITY - serial.len());
        serial.extend_from_slice(&bytes[..kept]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_flood_is_cut_off() {
        let mut console = Console::new();
        for _ in 0..5 {
            console.write_all(&vec![b'x'; 1 << 20]).expect("it takes everything");
        }
        assert_eq!(console.serial().len(), 4 << 20);
        for line in 0..10_001 {
            console.print_line(&line.to_string());
        }
        assert_eq!(console.stderr().last().map(String::as_str), Some("9999"));
    }
}
