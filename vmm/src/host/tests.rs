//! What both hosts promise, as one body each, and what virtual time promises beyond.

use super::*;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

const CHANNEL: WaitChannel = WaitChannel(7);
const MS: u64 = 1_000_000;

/// Runs a body on both hosts, with a limit that only a broken host reaches.
fn on_both(body: impl Fn(Host)) {
    body(Host::virtual_time(1, 10_000 * MS));
    body(Host::threads(Duration::from_secs(10)));
}

/// What the tasks of a test did, in order.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().push(what.into());
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

/// Runs a function when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn events(finished: &Finished) -> Vec<(&str, &Event, Option<Seq>)> {
    finished.trace.records.iter().map(|record| (&*record.task, &record.event, record.cause)).collect()
}

fn spawned(name: &str) -> Event {
    Event::TaskSpawned { name: name.into() }
}

#[test]
fn returning_from_main_ends_the_cell() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let sleeper = inner.clone();
            inner.spawn("sleeper", move || sleeper.sleep(u64::MAX));
            inner.sleep(MS);
        });
        assert_eq!(finished.end, End::Exit(0));
        assert!(finished.now_ns >= MS);
        assert_eq!(
            events(&finished),
            [
                ("host", &spawned("main"), None),
                ("main", &spawned("sleeper"), Some(0)),
                ("main", &Event::ProcessExit { status: 0 }, Some(0)),
            ]
        );
    });
}

#[test]
fn the_last_task_to_end_ends_the_cell() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let child = inner.clone();
            inner.spawn("child", move || child.sleep(MS));
            inner.exit_task();
        });
        assert_eq!(finished.end, End::Exit(0));
        assert_eq!(
            events(&finished)[2..],
            [
                ("main", &Event::TaskEnded, Some(0)),
                ("child", &Event::TaskEnded, Some(1)),
                ("child", &Event::ProcessExit { status: 0 }, Some(1)),
            ]
        );
    });
}

#[test]
fn wake_wakes_all_waiters_of_its_channel_and_no_others() {
    on_both(|host| {
        let inner = host.clone();
        let log = Log::default();
        let in_main = log.clone();
        let finished = host.run("main", move || {
            for name in ["a", "b"] {
                let (host, log) = (inner.clone(), in_main.clone());
                inner.spawn(name, move || log.add(format!("{:?}", host.wait(CHANNEL, None))));
            }
            let (host, log) = (inner.clone(), in_main.clone());
            inner.spawn("other", move || log.add(format!("other {:?}", host.wait(WaitChannel(8), Some(20 * MS)))));
            inner.wake(CHANNEL); // nobody waits yet
            inner.sleep(5 * MS);
            assert!(in_main.lines().is_empty());
            inner.wake(CHANNEL);
            inner.sleep(5 * MS);
            assert_eq!(in_main.lines(), ["Wakeup", "Wakeup"]);
            inner.sleep(50 * MS);
        });
        assert_eq!(finished.end, End::Exit(0));
        assert_eq!(log.lines(), ["Wakeup", "Wakeup", "other Timeout"]);
    });
}

#[test]
fn a_wait_with_a_time_limit_takes_that_long() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let before = inner.now();
            assert_eq!(inner.wait(CHANNEL, Some(3 * MS)), Woken::Timeout);
            let after = inner.now();
            assert!(after - before >= 3 * MS, "{before} {after}");
        });
        assert_eq!(finished.end, End::Exit(0));
    });
}

#[test]
fn the_end_unwinds_every_task_wherever_it_is() {
    on_both(|host| {
        let inner = host.clone();
        let log = Log::default();
        let in_main = log.clone();
        let finished = host.run("main", move || {
            let task = |name: &'static str, body: fn(&Host)| {
                let (host, log) = (inner.clone(), in_main.clone());
                inner.spawn(name, move || {
                    let _unwound = OnDrop(|| log.add(name));
                    body(&host);
                    log.add("not unwound");
                });
            };
            task("waits", |host| {
                host.wait(CHANNEL, None);
            });
            task("sleeps", |host| host.sleep(u64::MAX));
            task("yields", |host| {
                loop {
                    host.charge(100);
                    host.yield_now();
                }
            });
            task("relaxes", |host| {
                loop {
                    host.relax(3);
                }
            });
            inner.sleep(2 * MS);
            // Dropped without having run.
            let (host, unwound) = (inner.clone(), in_main.clone());
            let captured = OnDrop(move || {
                host.wake(CHANNEL);
                unwound.add("never begun");
            });
            inner.spawn("never begun", move || drop(captured));
            let _unwound = OnDrop(|| in_main.add("main"));
            inner.end(End::Exit(3));
        });
        assert_eq!(finished.end, End::Exit(3));
        let mut lines = log.lines();
        lines.sort();
        assert_eq!(lines, ["main", "never begun", "relaxes", "sleeps", "waits", "yields"]);
        let ends = finished.trace.records.iter().filter(|record| !matches!(record.event, Event::TaskSpawned { .. }));
        assert_eq!(ends.map(|record| &record.event).collect::<Vec<_>>(), [&Event::ProcessExit { status: 3 }]);
    });
}

#[test]
fn destructors_may_call_what_can_switch() {
    on_both(|host| {
        let inner = host.clone();
        let log = Log::default();
        let in_main = log.clone();
        let finished = host.run("main", move || {
            for name in ["exits", "is ended"] {
                let (host, log) = (inner.clone(), in_main.clone());
                inner.spawn(name, move || {
                    let _unwound = OnDrop(|| {
                        assert_eq!(host.wait(CHANNEL, None), Woken::Timeout);
                        host.sleep(u64::MAX);
                        host.yield_now();
                        host.relax(3);
                        assert_eq!(host.outside(|| 5), 5);
                        host.wake(CHANNEL);
                        log.add(name);
                    });
                    if name == "exits" {
                        host.exit_task();
                    }
                    host.wait(CHANNEL, None);
                });
            }
            inner.sleep(2 * MS);
            inner.end(End::Abort("assertion".into()));
        });
        assert_eq!(finished.end, End::Abort("assertion".into()));
        assert_eq!(log.lines(), ["exits", "is ended"]);
        let aborts = Event::Abort { message: "assertion".into() };
        assert_eq!(events(&finished).last(), Some(&("main", &aborts, Some(0))));
    });
}

#[test]
fn the_first_end_wins_and_calls_the_hooks_once() {
    on_both(|host| {
        let inner = host.clone();
        let calls = Arc::new(AtomicU32::new(0));
        let in_main = Arc::clone(&calls);
        let finished = host.run("main", move || {
            let count = move || {
                in_main.fetch_add(1, Ordering::SeqCst);
            };
            inner.on_end(count.clone());
            let (host, late) = (inner.clone(), inner.clone());
            inner.spawn("other", move || {
                let _late = OnDrop(move || late.on_end(count.clone()));
                host.sleep(MS);
                host.end(End::Panic("page fault".into()));
            });
            inner.sleep(20 * MS);
            inner.end(End::Exit(1));
        });
        assert_eq!(finished.end, End::Panic("page fault".into()));
        assert_eq!(calls.load(Ordering::SeqCst), 2, "the hook, and the one that came too late");
    });
}

#[test]
fn a_panic_of_rust_is_our_own_fault() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            inner.spawn("broken", || panic!("index {} out of range", 5));
            inner.sleep(u64::MAX);
        });
        assert_eq!(finished.end, End::HarnessError("Task broken panicked: index 5 out of range".into()));
    });
}

#[test]
fn everybody_waiting_for_nobody_is_a_deadlock() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let child = inner.clone();
            inner.spawn("child", move || {
                child.sleep(2 * MS);
                child.wait(CHANNEL, None);
            });
            inner.wait(CHANNEL, None);
        });
        assert_eq!(finished.end, End::Deadlock);
        assert!(finished.now_ns >= 2 * MS);
        assert_eq!(finished.trace.records.last().map(|record| &record.event), Some(&Event::Deadlock));
    });
}

#[test]
fn the_time_limit_ends_the_cell() {
    for host in [Host::virtual_time(1, 5 * MS), Host::threads(Duration::from_millis(5))] {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let child = inner.clone();
            inner.spawn("child", move || {
                loop {
                    child.relax(20);
                }
            });
            inner.wait(CHANNEL, None);
        });
        assert_eq!(finished.end, End::Deadline);
        assert!(finished.now_ns >= 5 * MS);
        assert_eq!(finished.trace.records.last().map(|record| &record.event), Some(&Event::Deadline));
    }
}

#[test]
fn causes_belong_to_tasks() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let first = inner.emit(Some(0), Event::VcpuAllocated);
            assert_eq!(inner.set_cause(Some(first)), Some(0));
            let child = inner.clone();
            inner.spawn("child", move || {
                child.emit(Some(1), Event::VcpuActivated);
                assert_eq!(child.set_cause(None), Some(2));
                child.emit(Some(1), Event::VcpuResumed);
            });
            inner.sleep(2 * MS);
            assert_eq!(inner.cause(), Some(first));
            inner.emit_caused(Some(3), None, Event::TripleFault);
            inner.emit_caused(None, None, Event::VlapicReset);
        });
        assert_eq!(
            events(&finished),
            [
                ("host", &spawned("main"), None),
                ("main", &Event::VcpuAllocated, Some(0)),
                ("main", &spawned("child"), Some(1)),
                ("child", &Event::VcpuActivated, Some(2)),
                ("child", &Event::VcpuResumed, None),
                ("child", &Event::TaskEnded, None),
                ("main", &Event::TripleFault, Some(3)),
                ("main", &Event::VlapicReset, None),
                ("main", &Event::ProcessExit { status: 0 }, Some(1)),
            ]
        );
    });
}

#[test]
fn one_task_runs_at_a_time() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let inside = Arc::new(AtomicBool::new(false));
            let done = Arc::new(AtomicU32::new(0));
            for name in ["a", "b", "c", "d"] {
                let (host, inside, done) = (inner.clone(), Arc::clone(&inside), Arc::clone(&done));
                inner.spawn(name, move || {
                    for _ in 0..200 {
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        host.charge(10);
                        inside.store(false, Ordering::SeqCst);
                        if host.random() % 2 == 0 { host.yield_now() } else { host.outside(std::thread::yield_now) }
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                    host.wake(CHANNEL);
                });
            }
            while done.load(Ordering::SeqCst) < 4 {
                inner.wait(CHANNEL, None);
            }
        });
        assert_eq!(finished.end, End::Exit(0));
    });
}

#[test]
fn outside_any_task_there_is_no_time_and_no_cause() {
    on_both(|host| {
        assert_eq!((host.now(), host.cause(), host.set_cause(Some(3))), (0, None, None));
        host.emit(None, Event::TripleFault);
        host.wake(CHANNEL);
        let finished = host.run("main", || {});
        assert_eq!(
            events(&finished),
            [
                ("host", &Event::TripleFault, None),
                ("host", &spawned("main"), None),
                ("main", &Event::ProcessExit { status: 0 }, Some(1)),
            ]
        );
    });
}

#[test]
fn a_body_may_borrow_from_its_own_stack_across_many_switches() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let numbers = [1, 2, 3];
            let sum = numbers.iter().map(|n| inner.outside(|| *n)).inspect(|_| inner.sleep(1000)).sum::<i32>();
            assert_eq!(sum, 6);
        });
        assert_eq!(finished.end, End::Exit(0));
    });
}

// -- threads --------------------------------------------------------------------------------------------------------------

#[test]
fn outside_lets_others_run_at_the_same_time() {
    let host = Host::threads(Duration::from_secs(10));
    let inner = host.clone();
    let finished = host.run("main", move || {
        let (send, receive) = std::sync::mpsc::channel();
        let child = inner.clone();
        inner.spawn("child", move || {
            child.emit(None, Event::TripleFault);
            send.send(()).expect("main waits for it");
        });
        inner.outside(move || receive.recv_timeout(Duration::from_secs(5))).expect("child runs meanwhile");
    });
    assert_eq!(finished.end, End::Exit(0));
}

#[test]
fn the_end_kicks_a_task_that_is_outside() {
    let host = Host::threads(Duration::from_secs(10));
    let inner = host.clone();
    let finished = host.run("main", move || {
        let (kick, kicked) = std::sync::mpsc::channel();
        inner.on_end(move || kick.send(()).expect("the guest waits for it"));
        let vcpu = inner.clone();
        inner.spawn("vcpu", move || {
            vcpu.outside(move || kicked.recv_timeout(Duration::from_secs(5))).expect("the end kicks");
        });
        inner.sleep(2 * MS);
        inner.end(End::Exit(1));
    });
    assert_eq!(finished.end, End::Exit(1));
}

#[test]
fn a_task_that_does_not_come_back_is_given_up() {
    let host = Host::threads(Duration::from_secs(10));
    let inner = host.clone();
    let began = Instant::now();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let finished = host.run("main", move || {
        let vcpu = inner.clone();
        inner.spawn("stuck", move || {
            vcpu.outside(move || released.recv()).expect_err("nobody sends");
        });
        inner.sleep(2 * MS);
        inner.end(End::Exit(0));
    });
    drop(release);
    assert_eq!(finished.end, End::HarnessError("Task stuck did not stop within 2 s of the cell's end".into()));
    assert!(began.elapsed() < Duration::from_secs(5));
}

// -- virtual time ---------------------------------------------------------------------------------------------------------

/// Four tasks that take slices and talk to one another; what they did, in order.
fn interleaving(seed: u64) -> (Finished, Vec<String>) {
    let host = Host::virtual_time(seed, 1000 * MS);
    let (inner, log) = (host.clone(), Log::default());
    let in_main = log.clone();
    let finished = host.run("main", move || {
        for name in ["a", "b", "c", "d"] {
            let (host, log) = (inner.clone(), in_main.clone());
            inner.spawn(name, move || {
                for _ in 0..20 {
                    log.add(format!("{name}@{}", host.now()));
                    host.emit(None, Event::VcpuResumed);
                    host.charge(host.slice());
                    host.yield_now();
                    host.wait(CHANNEL, Some(host.random() % 5000));
                    host.wake(CHANNEL);
                }
            });
        }
        inner.exit_task();
    });
    (finished, log.lines())
}

#[test]
fn the_seed_decides_the_interleaving() {
    let (first, first_log) = interleaving(1);
    let (again, again_log) = interleaving(1);
    assert_eq!(first_log, again_log);
    assert_eq!((&first.end, first.now_ns, &first.trace), (&again.end, again.now_ns, &again.trace));
    let others: std::collections::BTreeSet<_> = (0..20).map(|seed| interleaving(seed).1).collect();
    assert_eq!(others.len(), 20);
}

#[test]
fn ties_are_broken_by_the_seed() {
    let order = |seed| {
        let host = Host::virtual_time(seed, MS);
        let (inner, log) = (host.clone(), Log::default());
        let in_main = log.clone();
        host.run("main", move || {
            for name in ["a", "b", "c"] {
                let log = in_main.clone();
                inner.spawn(name, move || log.add(name));
            }
            inner.sleep(1);
        });
        log.lines()
    };
    let orders: std::collections::BTreeSet<_> = (0..100).map(order).collect();
    assert_eq!(orders.len(), 6, "all the permutations of three");
}

#[test]
fn the_task_furthest_behind_goes_first() {
    let host = Host::virtual_time(1, 1000 * MS);
    let (inner, log) = (host.clone(), Log::default());
    let in_main = log.clone();
    let finished = host.run("main", move || {
        for (name, step) in [("slow", 10_000), ("fast", 3_000)] {
            let (host, log) = (inner.clone(), in_main.clone());
            inner.spawn(name, move || {
                for _ in 0..3 {
                    host.charge(step);
                    host.yield_now();
                    log.add(format!("{name}@{}", host.now()));
                }
            });
        }
        inner.exit_task();
    });
    assert_eq!(log.lines(), ["fast@3000", "fast@6000", "fast@9000", "slow@10000", "slow@20000", "slow@30000"]);
    assert_eq!(finished.now_ns, 30_000);
}

#[test]
fn clocks_follow_spawner_and_waker() {
    let host = Host::virtual_time(1, 1000 * MS);
    let (inner, log) = (host.clone(), Log::default());
    let in_main = log.clone();
    host.run("main", move || {
        inner.charge(100);
        let (host, log) = (inner.clone(), in_main.clone());
        inner.spawn("behind", move || {
            log.add(format!("begins at {}", host.now()));
            host.wait(CHANNEL, None);
            log.add(format!("woken at {}", host.now()));
        });
        let (host, log) = (inner.clone(), in_main.clone());
        inner.spawn("ahead", move || {
            host.charge(5000);
            // Waits, so to speak, with a clock past its waker's.
            host.wait(CHANNEL, Some(1_000_000));
            log.add(format!("ahead woken at {}", host.now()));
        });
        inner.sleep(900);
        inner.wake(CHANNEL);
        inner.sleep(MS);
    });
    assert_eq!(log.lines(), ["begins at 100", "woken at 1000", "ahead woken at 5100"]);
}

#[test]
fn a_yield_of_the_earliest_task_returns_at_once_and_sleep_jumps() {
    let host = Host::virtual_time(1, u64::MAX);
    let inner = host.clone();
    let finished = host.run("main", move || {
        inner.sleep(1 << 60);
        inner.yield_now();
        assert_eq!(inner.now(), 1 << 60);
        inner.charge(u64::MAX);
        assert_eq!(inner.now(), u64::MAX);
    });
    assert_eq!((finished.end, finished.now_ns), (End::Exit(0), u64::MAX));
}

#[test]
fn relaxing_gets_longer_up_to_a_limit() {
    let host = Host::virtual_time(1, 1000 * MS);
    let inner = host.clone();
    host.run("main", move || {
        let mut cost = |streak| {
            let before = inner.now();
            inner.relax(streak);
            inner.now() - before
        };
        assert_eq!([0, 1, 8, 9, 40, u32::MAX].map(&mut cost), [64, 128, 16_384, 32_000, 32_000, 32_000]);
    });
}

#[test]
fn slices_are_two_to_eight_microseconds() {
    let host = Host::virtual_time(1, MS);
    let slices: Vec<u64> = (0..1000).map(|_| host.slice()).collect();
    assert!(slices.iter().all(|slice| (2000..=8000).contains(slice)));
    assert!(slices.iter().min() < Some(&2200) && slices.iter().max() > Some(&7800));
}

#[test]
fn many_short_tasks_take_the_places_of_those_that_are_gone() {
    let host = Host::virtual_time(1, 1000 * MS);
    let inner = host.clone();
    let count = Arc::new(AtomicU32::new(0));
    let in_main = Arc::clone(&count);
    let finished = host.run("main", move || {
        for _ in 0..2000 {
            let (child, count) = (inner.clone(), Arc::clone(&in_main));
            inner.spawn("child", move || {
                child.sleep(10);
                count.fetch_add(1, Ordering::Relaxed);
            });
            inner.sleep(25);
        }
    });
    assert_eq!((finished.end, count.load(Ordering::Relaxed)), (End::Exit(0), 2000));
}

#[test]
fn whoever_watches_a_cell_can_end_it_from_outside() {
    on_both(|host| {
        let (inside, outside) = (host.clone(), host.clone());
        let began = Arc::new(AtomicBool::new(false));
        let seen = began.clone();
        let watcher = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            outside.abandon("long enough");
        });
        let finished = host.run("main", move || {
            began.store(true, Ordering::Relaxed);
            loop {
                // The cell's own limit is far away: in virtual time this loop stands still.
                std::thread::yield_now();
                inside.yield_now();
            }
        });
        watcher.join().expect("it has nothing to panic about");
        assert_eq!(finished.end, End::HarnessError("long enough".into()));
    });
}

#[test]
fn a_cell_that_is_held_stands_still() {
    on_both(|host| {
        let inner = host.clone();
        let finished = host.run("main", move || {
            let (host, log) = (inner.clone(), Log::default());
            let in_task = log.clone();
            inner.spawn("ticker", move || {
                for tick in 0..5 {
                    host.sleep(MS);
                    in_task.add(format!("{tick}"));
                }
            });
            inner.sleep(5 * MS / 2);
            let held = inner.outside(|| {
                inner.hold(|| {
                    let before = (inner.now(), log.lines());
                    std::thread::sleep(Duration::from_millis(500));
                    (before, (inner.now(), log.lines()))
                })
            });
            let (before, after) = held.expect("the cell has not ended");
            assert_eq!(before, after);
            inner.sleep(10 * MS);
            assert_eq!(log.lines(), ["0", "1", "2", "3", "4"]);
        });
        assert_eq!(finished.end, End::Exit(0));
        assert!(finished.now_ns < 400 * MS, "no time passed while it was held: {}", finished.now_ns);
    });
}

#[test]
fn the_time_limit_does_not_run_while_the_cell_is_held() {
    let host = Host::threads(Duration::from_millis(100));
    let inner = host.clone();
    let finished = host.run("main", move || {
        assert_eq!(inner.hold(|| std::thread::sleep(Duration::from_millis(300))), Some(()));
        inner.sleep(MS);
    });
    assert_eq!(finished.end, End::Exit(0));
}

#[test]
fn anybody_can_hold_a_cell_of_threads() {
    let host = Host::threads(Duration::from_secs(10));
    let (inner, foreign) = (host.clone(), host.clone());
    let log = Log::default();
    let in_task = log.clone();
    let finished = host.run("main", move || {
        let holder = std::thread::spawn(move || {
            foreign.hold(|| {
                let before = log.lines().len();
                std::thread::sleep(Duration::from_millis(20));
                log.lines().len() - before
            })
        });
        while !holder.is_finished() {
            in_task.add("tick");
            inner.yield_now();
        }
        assert_eq!(holder.join().expect("it does not panic"), Some(0), "nobody ticks while the cell is held");
    });
    assert_eq!(finished.end, End::Exit(0));
    assert_eq!(host.hold(|| ()), None, "the cell has ended");
}
