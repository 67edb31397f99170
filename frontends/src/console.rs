//! What a frontend leaves behind for people to read: its serial port and its standard error.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

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

    /// The bytes that the guest sent to COM1.
    #[must_use]
    pub fn serial(&self) -> Vec<u8> {
        self.printed.lock().serial.clone()
    }

    /// The lines that the frontend wrote to its standard error.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.printed.lock().stderr.clone()
    }

    pub(crate) fn print_line(&self, line: &str) {
        self.printed.lock().stderr.push(line.to_owned());
    }
}

/// The serial port's end of the console.
impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.printed.lock().serial.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
