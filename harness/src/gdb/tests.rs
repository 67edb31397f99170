//! A debugger of our own, which speaks GDB's remote protocol as far as the tests need, beside a guest of three
//! instructions in a loop.

use super::DebuggedEngine;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use vmm::engine::soft::{NS_PER_INSTRUCTION, SoftEngine};
use vmm::engine::{Engine, EngineVcpu, Exit, Reg, SegDesc};
use vmm::memory::{PAGE_SIZE, Protection, Segment};

/// GDB's side of a connection.
struct Gdb {
    input: BufReader<TcpStream>,
    output: TcpStream,
}

impl Gdb {
    fn connect(address: std::net::SocketAddr) -> Gdb {
        let output = TcpStream::connect(address).expect("the stub listens");
        let input = BufReader::new(output.try_clone().expect("a socket can be cloned"));
        Gdb { input, output }
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0_u8, u8::wrapping_add);
        write!(self.output, "${packet}#{sum:02x}").expect("the stub reads");
    }

    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.input.read_exact(&mut byte).expect("the stub answers");
        byte[0]
    }

    /// The next packet, run-length encoding undone.
    fn receive(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut packet = String::new();
        loop {
            match self.byte() {
                b'#' => break,
                b'*' => {
                    let last = packet.chars().last().expect("a run has a character");
                    let more = usize::from(self.byte() - 29);
                    packet.extend(std::iter::repeat_n(last, more));
                }
                byte => packet.push(byte.into()),
            }
        }
        let _sum = [self.byte(), self.byte()];
        self.output.write_all(b"+").expect("the stub reads");
        packet
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.receive()
    }

    /// RIP of a thread.
    fn rip(&mut self, thread: u32) -> u64 {
        assert_eq!(self.ask(&format!("Hg{thread}")), "OK");
        let registers = self.ask("g");
        let bytes = &registers[16 * 16..][..16];
        u64::from_str_radix(bytes, 16).map(u64::swap_bytes).expect("eight bytes")
    }
}

/// Two vCPUs in real mode whose code is `code`, of which `guest` gets the first.
fn with_vcpu(engine: &dyn Engine, code: &[u8], guest: impl FnOnce(&mut dyn EngineVcpu)) {
    let segment = Arc::new(Segment::new(PAGE_SIZE as usize).expect("a page"));
    assert!(segment.write(0x100, code));
    let vm = engine.create_vm().expect("it can be made");
    vm.map(0, &segment, 0, PAGE_SIZE, Protection { write: true }).expect("nothing is there");
    let mut vcpus = [0, 1].map(|id| vm.create_vcpu(id).expect("it can be made"));
    for vcpu in &mut vcpus {
        let cs = vcpu.desc(Reg::Cs);
        vcpu.set_desc(Reg::Cs, SegDesc { base: 0, ..cs });
        vcpu.set_reg(Reg::Cs, 0);
        vcpu.set_reg(Reg::Rip, 0x100);
    }
    guest(&mut *vcpus[0]);
}

fn undebugged(code: &[u8], guest: impl FnOnce(&mut dyn EngineVcpu)) {
    with_vcpu(&SoftEngine::new(), code, guest);
}

/// The same under a debugger that runs beside it.
fn debug(code: &[u8], debugger: impl FnOnce(Gdb) + Send, guest: impl FnOnce(&mut dyn EngineVcpu)) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let engine = DebuggedEngine::new(Arc::new(SoftEngine::new()), listener);
    std::thread::scope(|scope| {
        scope.spawn(move || debugger(Gdb::connect(address)));
        with_vcpu(&engine, code, guest);
    });
}

/// again: inc ax; nop; cmp ax, 10; jne again; hlt
const LOOP: &[u8] = &[0x40, 0x90, 0x3d, 10, 0, 0x75, 0xf9, 0xf4];

#[test]
fn breakpoints_steps_registers_and_memory() {
    let debugger = |mut gdb: Gdb| {
        assert!(gdb.ask("qSupported:swbreak+;vContSupported+").contains("PacketSize"));
        assert!(gdb.ask("?").starts_with('T') || gdb.ask("?").starts_with('S'));
        assert_eq!(gdb.ask("qfThreadInfo"), "m01,02");
        assert_eq!((gdb.rip(1), gdb.rip(2)), (0x100, 0x100));
        assert_eq!(gdb.ask("m100,4"), "40903d0a");
        assert_eq!(gdb.ask("mfff0,10").get(..1), Some("E"), "no memory there");

        // A breakpoint on the nop: hit once a round.
        assert_eq!(gdb.ask("Z0,101,1"), "OK");
        for _ in 0..2 {
            let stop = gdb.ask("vCont;c");
            assert!(stop.starts_with("T05") && stop.contains("thread:01"), "{stop}");
            assert_eq!(gdb.rip(1), 0x101);
        }
        assert!(gdb.ask("g").starts_with("0200"), "AX after two rounds");

        // Steps, first off the breakpoint.
        for rip in [0x102, 0x105, 0x100, 0x101] {
            assert!(gdb.ask("vCont;s:1").starts_with("T05"));
            assert_eq!(gdb.rip(1), rip);
        }

        // The loop ends at 4 instead of 10.
        assert_eq!(gdb.ask("M103,1:04"), "OK");
        assert_eq!(gdb.ask("z0,101,1"), "OK");
        gdb.send("vCont;c");
        assert!(gdb.receive().starts_with('W'), "the machine is gone");
    };
    debug(LOOP, debugger, |vcpu| {
        assert_eq!(vcpu.run(1_000_000), Exit::Hlt);
        assert_eq!(vcpu.reg(Reg::Rax) & 0xffff, 4);
    });
}

#[test]
fn an_interrupt_stops_a_loop() {
    // jmp itself
    let debugger = |mut gdb: Gdb| {
        gdb.send("vCont;c");
        std::thread::sleep(std::time::Duration::from_millis(20));
        gdb.output.write_all(&[3]).expect("the stub reads");
        assert!(gdb.receive().starts_with("T02"), "SIGINT");
        assert_eq!(gdb.rip(1), 0x100);
        gdb.send("D");
        assert_eq!(gdb.receive(), "OK");
    };
    debug(&[0xeb, 0xfe], debugger, |vcpu| {
        // Until the debugger is gone, whose thread the test waits for.
        let began = std::time::Instant::now();
        while began.elapsed().as_millis() < 500 {
            assert!(matches!(vcpu.run(1000), Exit::Budget | Exit::Pause));
        }
    });
}

#[test]
fn time_passes_as_without_a_debugger() {
    // Budgets that do not come out even, and the loop's 41 instructions.
    let runs = |vcpu: &mut dyn EngineVcpu| -> Vec<(Exit, u64)> {
        [0, 7, 30, 1000].into_iter().map(|budget| (vcpu.run(budget), vcpu.elapsed_ns())).collect()
    };
    let mut plain = Vec::new();
    undebugged(LOOP, |vcpu| plain = runs(vcpu));
    assert_eq!(plain.last(), Some(&(Exit::Hlt, NS_PER_INSTRUCTION * (4 * 10 + 1 - 1 - 1 - 7))));
    let debugger = |mut gdb: Gdb| {
        assert_eq!(gdb.ask("Z0,200,1"), "OK");
        gdb.send("vCont;c");
        assert!(gdb.receive().starts_with('W'));
    };
    debug(LOOP, debugger, |vcpu| assert_eq!(runs(vcpu), plain));
}
