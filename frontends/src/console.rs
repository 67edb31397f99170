//! What a frontend leaves behind for people to read: its serial ports, debug console and standard error; and what somebody types.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::{fmt, io};

/// A line of the serial port is watched up to this length.
const LINE_CAPACITY: usize = 1024;

/// What a control sequence of a terminal begins with (ECMA-48).
const ESCAPE: u8 = 0x1b;

/// How many bytes of each stream are kept, and how many lines of standard error: a guest that writes in a loop must
/// not eat the machine's memory.
const SERIAL_CAPACITY: usize = 4 << 20;
const STDERR_CAPACITY: usize = 10_000;

/// The output of one cell's frontend; clones are the same console. Readable while the cell runs and after it has ended.
#[derive(Clone, Default)]
pub struct Console {
    printed: Arc<Mutex<Printed>>,
    keyboard: Keyboard,
    watch: Option<Arc<Watch>>,
    /// Where what is written to this handle goes.
    stream: Stream,
}

/// What is typed at COM1; clones are the same keyboard.
#[derive(Clone, Debug, Default)]
pub struct Keyboard(Arc<Mutex<VecDeque<u8>>>);

impl Keyboard {
    /// Types: the bytes arrive as the guest makes room for them.
    pub fn type_in(&self, bytes: &[u8]) {
        self.0.lock().extend(bytes);
    }
}

/// Where a guest's output comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// COM1.
    #[default]
    Com1,
    /// COM2.
    Com2,
    /// The debug consoles.
    Debug,
    /// The virtio console.
    Virtio,
}

/// What is called with each line of a stream.
type Watch = dyn Fn(&str) + Send + Sync;

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.printed.fmt(f)
    }
}

#[derive(Debug, Default)]
struct Printed {
    /// One for each [`Stream`].
    streams: [Output; 4],
    stderr: Vec<String>,
}

#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    /// The line that is being sent, when somebody watches.
    line: Vec<u8>,
}

impl Console {
    /// A console on which nothing has been printed.
    #[must_use]
    pub fn new() -> Console {
        Console::default()
    }

    /// A console whose streams are read along: `watch` is called with each line when it ends, by the task whose guest
    /// sent it, and must not write to the console itself. It may type, and may end the cell.
    #[must_use]
    pub fn watched(watch: impl Fn(&str) + Send + Sync + 'static) -> Console {
        Console { watch: Some(Arc::new(watch)), ..Console::default() }
    }

    /// The bytes that the guest sent to COM1; of very many, the first 4 MiB.
    #[must_use]
    pub fn serial(&self) -> Vec<u8> {
        self.output(Stream::Com1)
    }

    /// The bytes that the guest sent to a stream; of very many, the first 4 MiB.
    #[must_use]
    pub fn output(&self, stream: Stream) -> Vec<u8> {
        self.printed.lock().streams[stream as usize].bytes.clone()
    }

    /// The same console with this keyboard.
    #[must_use]
    pub fn with_keyboard(self, keyboard: Keyboard) -> Console {
        Console { keyboard, ..self }
    }

    /// The console whose output goes to this stream; its lines are watched too. Nothing can be typed there.
    pub(crate) fn stream(&self, stream: Stream) -> Console {
        Console { stream, keyboard: Keyboard::default(), ..self.clone() }
    }

    /// Takes what has been typed, up to so many bytes.
    pub(crate) fn take_typed(&self, room: usize) -> Vec<u8> {
        let mut typed = self.keyboard.0.lock();
        let len = room.min(typed.len());
        typed.drain(..len).collect()
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

/// A stream's end of the console.
impl io::Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut printed = self.printed.lock();
        let output = &mut printed.streams[self.stream as usize];
        let kept = bytes.len().min(SERIAL_CAPACITY - output.bytes.len());
        output.bytes.extend_from_slice(&bytes[..kept]);
        let Some(watch) = &self.watch else { return Ok(bytes.len()) };
        for &byte in bytes {
            // A program that paints a screen moves the cursor from text to text, and ends no line.
            if byte == b'\n' || byte == ESCAPE && !output.line.is_empty() {
                let line = std::mem::take(&mut output.line);
                watch(String::from_utf8_lossy(&line).trim_end());
            } else if byte != ESCAPE && output.line.len() < LINE_CAPACITY {
                output.line.push(byte);
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
    fn a_painted_screen_has_lines() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let mut console = Console::watched(move |line| seen.lock().push(line.to_owned()));
        console.write_all(b"\x1b[1;1HTitle\x1b[2;1H\x1b[1mText\n").expect("it takes everything");
        assert_eq!(*lines.lock(), ["[1;1HTitle", "[2;1H", "[1mText"]);
    }

    #[test]
    fn streams_are_apart_and_only_com1_is_typed_at() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lines);
        let console = Console::watched(move |line| seen.lock().push(line.to_owned()));
        let mut debug = console.stream(Stream::Debug);
        console.clone().write_all(b"se").expect("it takes everything");
        debug.write_all(b"debug\n").expect("it takes everything");
        console.clone().write_all(b"rial\n").expect("it takes everything");
        assert_eq!(*lines.lock(), ["debug", "serial"]);
        assert_eq!((console.serial(), console.output(Stream::Debug)), (b"serial\n".to_vec(), b"debug\n".to_vec()));
        let keyboard = Keyboard::default();
        let console = console.with_keyboard(keyboard.clone());
        keyboard.type_in(b"abc");
        assert_eq!(
            (debug.take_typed(9), console.take_typed(2), console.take_typed(2)),
            (vec![], b"ab".to_vec(), b"c".to_vec())
        );
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
