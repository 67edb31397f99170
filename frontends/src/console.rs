//! What a frontend leaves behind for people to read: its serial port and its standard error.

use parking_lot::Mutex;
use std::sync::Arc;
use std::{fmt, io};

/// A line of the serial port is watched up to this length.
const LINE_CAPACITY: usize = 1024;

/// How many bytes of the serial port are kept, and how many lines of standard error: a guest that writes in a loop must
/// not eat the machine's memory.
const SERIAL_CAPACITY: usize = 4 << 20;
const STDERR_CAPACITY: usize = 10_000;

/// The output of one cell's frontend; clones are the same console. Readable while the cell runs and after it has ended.
#[derive(Clone, Default)]
pub struct Console {
    printed: Arc<Mutex<Printed>>,
    watch: Option<Arc<Watch>>,
}

/// What is called with each line of the serial port.
type Watch = dyn Fn(&str) + Send + Sync;

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.printed.fmt(f)
    }
}

#[derive(Debug, Default)]
struct Printed {
    serial: Vec<u8>,
    /// What was sent to the virtio console.
    virtio: Vec<u8>,
    /// The line that is being sent, when somebody watches.
    line: Vec<u8>,
    stderr: Vec<String>,
}

impl Console {
    /// A console on which nothing has been printed.
    #[must_use]
    pub fn new() -> Console {
        Console::default()
    }

    /// A console whose serial port is read along: `watch` is called with each line when it ends, by the task whose guest
    /// sent it, and must not write to the console itself.
    #[must_use]
    pub fn watched(watch: impl Fn(&str) + Send + Sync + 'static) -> Console {
        Console { watch: Some(Arc::new(watch)), ..Console::default() }
    }

    /// The bytes that the guest sent to COM1; of very many, the first 4 MiB.
    #[must_use]
    pub fn serial(&self) -> Vec<u8> {
        self.printed.lock().serial.clone()
    }

    /// The bytes that the guest sent to its virtio console; of very many, the first 4 MiB.
    #[must_use]
    pub fn virtio(&self) -> Vec<u8> {
        self.printed.lock().virtio.clone()
    }

    pub(crate) fn write_virtio(&self, bytes: &[u8]) {
        let virtio = &mut self.printed.lock().virtio;
        let kept = bytes.len().min(SERIAL_CAPACITY - virtio.len());
        virtio.extend_from_slice(&bytes[..kept]);
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
        let mut printed = self.printed.lock();
        let kept = bytes.len().min(SERIAL_CAPACITY - printed.serial.len());
        printed.serial.extend_from_slice(&bytes[..kept]);
        let Some(watch) = &self.watch else { return Ok(bytes.len()) };
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut printed.line);
                watch(String::from_utf8_lossy(&line).trim_end());
            } else if printed.line.len() < LINE_CAPACITY {
                printed.line.push(byte);
            }
        }
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
    fn lines_are_read_along() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let mut console = Console::watched(move |line| seen.lock().push(line.to_owned()));
        console.write_all(b"one\r\ntw").expect("it takes everything");
        console.write_all(b"o\n\nthree").expect("it takes everything");
        console.write_all(&[b'x'; 5000]).expect("it takes everything");
        assert_eq!(*lines.lock(), ["one", "two", ""]);
        console.write_all(b"\n").expect("it takes everything");
        assert_eq!(lines.lock().last().map(String::len), Some(1024), "a line without an end is cut off");
        assert!(console.serial().starts_with(b"one\r\ntwo\n\nthree"));
    }

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
