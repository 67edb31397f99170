//! The connection to GDB, which one reads and another watches.

use gdbstub::conn::Connection;
use std::io::{self, Read as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The end of the connection that is spoken over. When it is dropped, the connection is closed.
pub(super) struct Wire {
    stream: TcpStream,
    /// What is to be sent with the next packet's end, or before the next byte is waited for.
    unsent: Vec<u8>,
    taken: Arc<AtomicU64>,
}

/// The end that sees when GDB sends something, or goes away.
pub(super) struct Watched {
    stream: TcpStream,
    taken: Arc<AtomicU64>,
}

/// A byte from GDB that was there: the first after so many others. The end of the connection is one, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sighted(u64);

impl Wire {
    /// Both ends of a connection.
    pub(super) fn new(stream: TcpStream) -> io::Result<(Wire, Watched)> {
        stream.set_nodelay(true)?;
        let taken = Arc::new(AtomicU64::new(0));
        let watched = Watched { stream: stream.try_clone()?, taken: Arc::clone(&taken) };
        Ok((Wire { stream, unsent: Vec::new(), taken }, watched))
    }

    /// The next byte; waits for it.
    pub(super) fn read(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.flush()?;
        self.stream.read_exact(&mut byte)?;
        self.taken.fetch_add(1, Ordering::SeqCst);
        Ok(byte[0])
    }

    /// Whether a byte that was there has not been read since.
    pub(super) fn has(&self, Sighted(before): Sighted) -> bool {
        self.taken.load(Ordering::SeqCst) == before
    }
}

impl Watched {
    /// Waits until a byte is there to be read, or never will be.
    pub(super) fn sight(&self) -> Sighted {
        loop {
            let before = self.taken.load(Ordering::SeqCst);
            match self.stream.peek(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It may be one that has been read meanwhile. An end or an error stays, and is met by whoever reads.
                _ if self.taken.load(Ordering::SeqCst) == before => return Sighted(before),
                _ => {}
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // For the other end. Both fail when GDB was faster.
        let _ = self.flush();
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Connection for Wire {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.unsent.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::Write::write_all(&mut self.stream, &self.unsent)?;
        self.unsent.clear();
        Ok(())
    }
}
