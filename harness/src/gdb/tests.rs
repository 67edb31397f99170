//! A debugger of our own, which speaks GDB's remote protocol as far as the tests need, beside guests of a few instructions: on the
//! software processor in virtual time, on the same one with a thread for each vCPU, and on KVM.

use super::DebuggedEngine;
use crate::cell::EngineKind;
use crate::run::Engines;
use parking_lot::Mutex;
use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};
use vmm::engine::soft::{NS_PER_INSTRUCTION, SoftEngine};
use vmm::engine::{Engine, EngineVcpu, Exit, Reg, SegDesc};
use vmm::host::{End, Finished, Host};
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

    fn interrupt(&mut self) {
        self.output.write_all(&[3]).expect("the stub reads");
    }

    /// RIP of a thread.
    fn rip(&mut self, thread: u32) -> u64 {
        assert_eq!(self.ask(&format!("Hg{thread}")), "OK");
        let registers = self.ask("g");
        let bytes = &registers[16 * 16..][..16];
        u64::from_str_radix(bytes, 16).map(u64::swap_bytes).expect("eight bytes")
    }
}

/// How long a guest may run at a time, in nanoseconds.
const BUDGET: u64 = 100_000;

/// An engine, and a host to run its vCPUs on.
struct Place {
    engine: Arc<dyn Engine>,
    host: Host,
}

impl Place {
    /// Time limit of the hosts.
    const LIMIT: Duration = Duration::from_secs(20);

    fn turns() -> Place {
        let limit = Place::LIMIT.as_nanos() as u64;
        Place { engine: Arc::new(SoftEngine::new()), host: Host::virtual_time(1, limit) }
    }

    fn threads(limit: Duration) -> Vec<Place> {
        let engines = Engines::new();
        let kvm = engines.get(EngineKind::Kvm).inspect_err(|reason| eprintln!("Skipped: {reason}")).ok();
        let soft: Arc<dyn Engine> = Arc::new(SoftEngine::new());
        [Some(soft), kvm].into_iter().flatten().map(|engine| Place { engine, host: Host::threads(limit) }).collect()
    }

    fn all() -> Vec<Place> {
        let mut places = Place::threads(Place::LIMIT);
        places.push(Place::turns());
        places
    }

    /// Runs a cell of as many vCPUs in real mode as there are guests, all with `code`, under a debugger that runs beside it if there
    /// is one. The first guest is the cell's main task.
    fn run(&self, code: &[u8], debugger: Option<impl FnOnce(Gdb) + Send>, guests: Vec<Guest>) -> Finished {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let engine: Arc<dyn Engine> = match debugger {
            Some(_) => Arc::new(DebuggedEngine::new(self.engine.clone(), listener, &self.host)),
            None => self.engine.clone(),
        };
        let (host, code) = (self.host.clone(), code.to_vec());
        let main = move || {
            let segment = Arc::new(Segment::new(PAGE_SIZE as usize).expect("a page"));
            assert!(segment.write(0x100, &code));
            let vm = engine.create_vm().expect("it can be made");
            vm.map(0, &segment, 0, PAGE_SIZE, Protection { write: true }).expect("nothing is there");
            let mut vcpus: Vec<_> = (0..guests.len() as u32).map(|id| power_up(&*vm, id)).collect();
            for vcpu in &vcpus {
                let kick = vcpu.kick_handle();
                host.on_end(move || kick.kick());
            }
            for (mut vcpu, guest) in vcpus.drain(1..).zip(guests[1..].to_vec()) {
                let inner = host.clone();
                host.spawn("vcpu", move || guest(&inner, &mut *vcpu));
            }
            guests[0](&host, &mut *vcpus[0]);
        };
        std::thread::scope(|scope| {
            if let Some(debugger) = debugger {
                scope.spawn(move || debugger(Gdb::connect(address)));
            }
            self.host.run("main", main)
        })
    }

    /// [`Place::run`] under a debugger, to an end that is no fault.
    fn debug(&self, code: &[u8], debugger: impl FnOnce(Gdb) + Send, guests: Vec<Guest>) {
        let finished = self.run(code, Some(debugger), guests);
        assert_eq!(finished.end, End::Exit(0), "on {} and {:?}", self.engine.name(), self.host);
    }
}

/// What the task of a vCPU does.
type Guest = Arc<dyn Fn(&Host, &mut dyn EngineVcpu) + Send + Sync>;

/// Runs the vCPU until it halts.
fn until_halt() -> Guest {
    until(|exit, _| exit == Exit::Hlt)
}

/// Runs the vCPU until it is over.
fn until(over: impl Fn(Exit, &Host) -> bool + Send + Sync + 'static) -> Guest {
    in_slices(BUDGET, over)
}

/// The same for so many nanoseconds at a time.
fn in_slices(budget: u64, over: impl Fn(Exit, &Host) -> bool + Send + Sync + 'static) -> Guest {
    Arc::new(move |host, vcpu| {
        loop {
            let exit = host.outside(|| vcpu.run(budget));
            if over(exit, host) {
                break;
            }
            host.charge(vcpu.elapsed_ns());
            host.yield_now();
        }
    })
}

/// A vCPU in real mode at 100h, all segments that matter at 0.
fn power_up(vm: &dyn vmm::engine::EngineVm, id: u32) -> Box<dyn EngineVcpu> {
    let mut vcpu = vm.create_vcpu(id).expect("it can be made");
    for reg in [Reg::Cs, Reg::Ds] {
        let desc = vcpu.desc(reg);
        vcpu.set_desc(reg, SegDesc { base: 0, ..desc });
        vcpu.set_reg(reg, 0);
    }
    vcpu.set_reg(Reg::Rip, 0x100);
    vcpu
}

/// again: inc ax; nop; cmp ax, 10; jne again; hlt
const LOOP: &[u8] = &[0x40, 0x90, 0x3d, 10, 0, 0x75, 0xf9, 0xf4];

/// again: inc word \[200h]; jmp again
const COUNTER: &[u8] = &[0xff, 0x06, 0x00, 0x02, 0xeb, 0xfa];

/// jmp itself
const SPIN: &[u8] = &[0xeb, 0xfe];

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

        // Steps, first off the breakpoint, alone and together with the others.
        for (step, rip) in [("vCont;s:1", 0x102), ("vCont;s:1;c", 0x105), ("vCont;s:1", 0x100), ("vCont;s:1;c", 0x101)]
        {
            assert!(gdb.ask(step).starts_with("T05"));
            assert_eq!(gdb.rip(1), rip);
        }

        // The loop ends at 4 instead of 10.
        assert_eq!(gdb.ask("M103,1:04"), "OK");
        assert_eq!(gdb.ask("z0,101,1"), "OK");
        gdb.send("vCont;c");
        assert!(gdb.receive().starts_with('W'), "the machine is gone");
    };
    for place in Place::all() {
        let idle: Guest = Arc::new(|host, _| host.sleep(u64::MAX));
        let guest: Guest = Arc::new(|host, vcpu| {
            until_halt()(host, vcpu);
            assert_eq!(vcpu.reg(Reg::Rax) & 0xffff, 4);
        });
        place.debug(LOOP, debugger, vec![guest, idle]);
    }
}

#[test]
fn an_interrupt_stops_loops() {
    for place in Place::all() {
        let gone = Arc::new(Mutex::new(false));
        let (seen, left) = (gone.clone(), gone);
        let debugger = move |mut gdb: Gdb| {
            for _ in 0..3 {
                gdb.send("vCont;c");
                sleep(Duration::from_millis(20));
                gdb.interrupt();
                assert!(gdb.receive().starts_with("T02"), "SIGINT");
                assert_eq!((gdb.rip(1), gdb.rip(2)), (0x100, 0x100));
            }
            assert_eq!(gdb.ask("D"), "OK");
            *left.lock() = true;
        };
        let spin = until(move |_, _| *seen.lock());
        place.debug(SPIN, debugger, vec![spin.clone(), spin]);
    }
}

#[test]
fn an_interrupt_stops_vcpus_that_wait_in_the_kernel() {
    for place in Place::threads(Place::LIMIT) {
        let gone = Arc::new(Mutex::new(false));
        let (seen, left) = (gone.clone(), gone);
        let debugger = move |mut gdb: Gdb| {
            gdb.send("vCont;c");
            sleep(Duration::from_millis(50));
            gdb.interrupt();
            assert!(gdb.receive().starts_with("T02"), "SIGINT");
            assert_eq!((gdb.rip(1), gdb.rip(2)), (0x101, 0x100), "one is halted, the other never began");
            assert_eq!(gdb.ask("D"), "OK");
            *left.lock() = true;
        };
        let halted: Guest = Arc::new(move |host, vcpu| {
            until_halt()(host, vcpu);
            while !*seen.lock() {
                host.sleep(1_000_000);
            }
        });
        let unborn: Guest = Arc::new(|host, _| host.sleep(u64::MAX));
        place.debug(&[0xf4], debugger, vec![halted, unborn]);
    }
}

#[test]
fn all_stop_with_the_one_that_stops() {
    for place in Place::all() {
        let debugger = |mut gdb: Gdb| {
            // The second vCPU counts, the first runs into a breakpoint.
            assert_eq!(gdb.ask("Hg2"), "OK");
            let before = gdb.ask("m200,2");
            assert_eq!(gdb.ask("Z0,180,1"), "OK");
            let stop = gdb.ask("vCont;c");
            assert!(stop.starts_with("T05") && stop.contains("thread:01"), "{stop}");
            assert_eq!(gdb.rip(1), 0x180);
            let rip = gdb.rip(2);
            assert!((0x100..0x106).contains(&rip), "{rip:x}");
            let count = gdb.ask("m200,2");
            sleep(Duration::from_millis(20));
            assert_eq!((gdb.ask("m200,2"), gdb.rip(2)), (count.clone(), rip));
            assert_ne!(before, count, "it counted");
            // A step for which the others wait.
            assert!(gdb.ask("vCont;s:1").contains("thread:01"));
            assert_eq!((gdb.rip(1), gdb.rip(2), gdb.ask("m200,2")), (0x181, rip, count));
            gdb.send("vCont;c");
            assert!(gdb.receive().starts_with('W'));
        };
        let counts = until(|_, _| false);
        let breaks: Guest = Arc::new(move |host, vcpu| {
            vcpu.set_reg(Reg::Rip, 0x110);
            until_halt()(host, vcpu);
        });
        // The first vCPU: again: cmp word [200h], 0; je again; jmp 180h. And there: nop; hlt.
        let mut code = vec![0x90; 0x90];
        code[..COUNTER.len()].copy_from_slice(COUNTER);
        code[0x10..0x19].copy_from_slice(&[0x83, 0x3e, 0x00, 0x02, 0x00, 0x74, 0xf9, 0xeb, 0x67]);
        code[0x81] = 0xf4;
        place.debug(&code, debugger, vec![breaks, counts]);
    }
}

#[test]
fn a_step_for_which_the_others_wait_outlasts_its_slice() {
    let debugger = |mut gdb: Gdb| {
        assert_eq!(gdb.ask("Z0,110,1"), "OK");
        assert!(gdb.ask("vCont;c").contains("thread:01"));
        let others = |gdb: &mut Gdb| (gdb.rip(2), gdb.ask("m200,2"));
        let before = others(&mut gdb);
        for rip in 0x111..0x118 {
            assert!(gdb.ask("vCont;s:1").contains("thread:01"));
            assert_eq!((gdb.rip(1), others(&mut gdb)), (rip, before.clone()));
        }
        gdb.send("vCont;c");
        assert!(gdb.receive().starts_with('W'));
    };
    // Each slice ends behind an instruction.
    let counts = in_slices(NS_PER_INSTRUCTION, |_, _| false);
    let halts: Guest = Arc::new(|host, vcpu| {
        vcpu.set_reg(Reg::Rip, 0x108);
        in_slices(NS_PER_INSTRUCTION, |exit, _| exit == Exit::Hlt)(host, vcpu);
    });
    let mut code = vec![0x90; 0x40];
    code[..COUNTER.len()].copy_from_slice(COUNTER);
    code[0x20] = 0xf4;
    Place::turns().debug(&code, debugger, vec![halts, counts]);
}

#[test]
fn breakpoints_that_all_run_into() {
    for place in Place::threads(Place::LIMIT) {
        let debugger = |mut gdb: Gdb| {
            assert_eq!(gdb.ask("Z0,105,1"), "OK");
            let mut stops = [0; 2];
            for _ in 0..12 {
                let stop = gdb.ask("vCont;c");
                let thread = if stop.contains("thread:01") { 1 } else { 2 };
                assert!(stop.starts_with("T05"), "{stop}");
                assert_eq!(gdb.rip(thread), 0x105);
                stops[thread as usize - 1] += 1;
            }
            assert!(stops.iter().all(|&stops| stops > 0), "{stops:?}");
            // As often as there were stops, or a vCPU is about to stop.
            let count = u64::from_str_radix(&gdb.ask("m200,1"), 16).expect("a number");
            assert!((12..=13).contains(&count), "{count}");
            gdb.send("k");
        };
        let spin = until(|_, _| false);
        // again: lock inc byte [200h]; jmp again
        let code = [0xf0, 0xfe, 0x06, 0x00, 0x02, 0xeb, 0xf9];
        let finished = place.run(&code, Some(debugger), vec![spin.clone(), spin]);
        assert_eq!(finished.end, End::HarnessError("GDB killed the guest".into()));
    }
}

#[test]
fn time_stands_still_while_gdb_looks() {
    for place in Place::threads(Duration::from_millis(600)) {
        let debugger = |mut gdb: Gdb| {
            sleep(Duration::from_millis(500));
            assert_eq!(gdb.ask("Z0,101,1"), "OK");
            assert!(gdb.ask("vCont;c").starts_with("T05"));
            sleep(Duration::from_millis(500));
            assert_eq!(gdb.ask("D"), "OK");
        };
        place.debug(LOOP, debugger, vec![until_halt()]);
    }
}

#[test]
fn the_guest_goes_on_alone_when_gdb_is_gone() {
    for place in Place::all() {
        // In a stop, and while the guest runs.
        place.debug(LOOP, |mut gdb: Gdb| drop(gdb.ask("Z0,101,1")), vec![until_halt()]);
    }
    for place in Place::all() {
        let began = Instant::now();
        let debugger = |mut gdb: Gdb| gdb.send("vCont;c");
        place.debug(SPIN, debugger, vec![until(move |_, _| began.elapsed() > Duration::from_millis(100))]);
    }
}

#[test]
fn time_passes_as_without_a_debugger() {
    // Budgets that do not come out even, and the loop's 41 instructions.
    let runs = |debugger: Option<fn(Gdb)>| {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let out = Arc::clone(&seen);
        let guest: Guest = Arc::new(move |_, vcpu| {
            *out.lock() = [0, 7, 30, 1000].into_iter().map(|budget| (vcpu.run(budget), vcpu.elapsed_ns())).collect();
        });
        assert_eq!(Place::turns().run(LOOP, debugger, vec![guest]).end, End::Exit(0));
        seen.lock().clone()
    };
    let plain = runs(None);
    assert_eq!(plain.last(), Some(&(Exit::Hlt, NS_PER_INSTRUCTION * (4 * 10 + 1 - 1 - 1 - 7))));
    let debugger = |mut gdb: Gdb| {
        assert_eq!(gdb.ask("Z0,200,1"), "OK");
        gdb.send("vCont;c");
        assert!(gdb.receive().starts_with('W'));
    };
    assert_eq!(runs(Some(debugger)), plain);
}
