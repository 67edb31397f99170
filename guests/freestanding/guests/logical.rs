//! Logical destinations: in xAPIC mode of the flat model and then of the cluster model, in x2APIC mode of the cluster model, which
//! is the only one there.
//!
//! The architecture (SDM 3A 11.6.2.2, 11.12.10). In x2APIC mode the logical ID follows from the APIC ID, so that INIT and STARTUP with a
//! logical destination start an AP. In xAPIC mode a CPU gives itself its logical ID, and INIT takes it away again (11.4.7.3): APs
//! are started by their APIC IDs here; fixed interrupts are for those whom the destination means, one or several; INIT stops those
//! that have an ID; STARTUP by the ID that is gone starts nobody, and by the APIC ID it does.
//!
//! The flat model has 8 logical IDs and the cluster model of xAPIC 60. CPUs beyond have none, and no destination is for them.
//!
//! Kernels differ in INIT and STARTUP: the field is taken for an APIC ID (13.1), which is another CPU's or none's; logical ones are
//! ignored unless userspace has asked for IPI_EXIT (from 769b884e2e2 on); or they are looked up among the active vCPUs.
#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU32, Ordering};
use runtime::interrupts::WAKE;
use runtime::logical::Model;
use runtime::report::{
    TEST_CLUSTER_DESTINATION, TEST_FLAT_DESTINATION, TEST_INIT_CLEARS_LOGICAL_ID, TEST_RESTARTED_AT_NEW_VECTOR,
    TEST_STOPS_ON_INIT, test,
};
use runtime::scenario::{ask_for, done, expect, expect_of_all, start_all, watch, watch_for_beats};
use runtime::{
    Ap, Bsp, INIT, LEVEL_ASSERT, LOGICAL, SECOND_VECTOR, STARTUP, TRAMPOLINE_VECTOR, TRIGGER_LEVEL, enable_interrupts,
    expect_at, require_all, send,
};

runtime::guest!("logical", main, ap = follow);

/// The model that every CPU is to use; 0 while there is none.
static MODEL: AtomicU32 = AtomicU32::new(0);
/// How many APs use it.
static FOLLOWING: AtomicU32 = AtomicU32::new(0);

fn main(bsp: Bsp) -> ! {
    let aps = bsp.aps();
    ask_for(aps.len());
    if bsp.x2apic() { in_x2apic_mode(aps) } else { in_xapic_mode(&bsp, aps) }
}

fn in_x2apic_mode(aps: &[Ap]) -> ! {
    expect_at(TRAMPOLINE_VECTOR);
    for icr_low in
        [INIT | TRIGGER_LEVEL | LEVEL_ASSERT, INIT | TRIGGER_LEVEL, STARTUP | LEVEL_ASSERT | TRAMPOLINE_VECTOR]
    {
        Model::X2ApicCluster.reach_all(aps, |destination| send(destination, LOGICAL | icr_low));
    }
    require_all(aps);
    test_reach(Model::X2ApicCluster, aps, TEST_CLUSTER_DESTINATION);
    done(aps.len())
}

fn in_xapic_mode(bsp: &Bsp, aps: &[Ap]) -> ! {
    start_all(aps, TRAMPOLINE_VECTOR);
    use_model(Model::Flat, bsp, aps);
    test_reach(Model::Flat, aps, TEST_FLAT_DESTINATION);
    use_model(Model::Cluster, bsp, aps);
    test_reach(Model::Cluster, aps, TEST_CLUSTER_DESTINATION);

    Model::Cluster.reach_all(aps, |destination| {
        send(destination, LOGICAL | INIT | TRIGGER_LEVEL | LEVEL_ASSERT);
        send(destination, LOGICAL | INIT | TRIGGER_LEVEL);
    });
    watch();
    watch_for_beats(aps);
    let named = Model::Cluster.named(aps);
    for ap in named {
        test(TEST_STOPS_ON_INIT, Some(ap), !ap.has_beaten());
    }
    for ap in Model::Cluster.nameless(aps) {
        test(TEST_CLUSTER_DESTINATION, Some(ap), ap.has_beaten());
    }
    expect_at(SECOND_VECTOR);
    Model::Cluster.reach_all(aps, |destination| {
        send(destination, LOGICAL | STARTUP | LEVEL_ASSERT | SECOND_VECTOR);
    });
    watch();
    for ap in aps {
        test(TEST_INIT_CLEARS_LOGICAL_ID, Some(ap), ap.arrivals().0 == 1);
    }
    for ap in named {
        ap.startup(SECOND_VECTOR);
    }
    let restarted = |ap: &Ap| ap.arrivals() == (2, SECOND_VECTOR);
    expect_of_all(named, restarted);
    for ap in named {
        test(TEST_RESTARTED_AT_NEW_VECTOR, Some(ap), restarted(ap));
    }
    done(aps.len())
}

/// Every CPU uses the model from here on.
fn use_model(model: Model, bsp: &Bsp, aps: &[Ap]) {
    FOLLOWING.store(0, Ordering::Relaxed);
    MODEL.store(model as u32, Ordering::Release);
    model.adopt(bsp.cpu());
    expect(|| FOLLOWING.load(Ordering::Acquire) == aps.len() as u32);
}

/// Wakes each AP by its own logical ID, and then those of each destination together: each AP that has a logical ID hears of both, and
/// no other of either.
fn test_reach(model: Model, aps: &[Ap], which: u32) {
    for ap in aps {
        ap.forget_wakes();
    }
    let named = model.named(aps);
    // A second interrupt before the first is taken would be the same one. Where one is lost, all need no waiting for.
    let mut heard = true;
    for ap in named {
        send(model.destination(ap), LOGICAL | LEVEL_ASSERT | u32::from(WAKE));
        heard = heard && expect(|| ap.wakes() > 0);
    }
    model.reach_all(aps, |destination| send(destination, LOGICAL | LEVEL_ASSERT | u32::from(WAKE)));
    expect_of_all(named, |ap| ap.wakes() == 2);
    watch();
    for ap in named {
        test(which, Some(ap), ap.wakes() == 2);
    }
    for ap in model.nameless(aps) {
        test(which, Some(ap), ap.wakes() == 0);
    }
}

/// An AP uses the model that everybody is to use, and shows that it runs.
fn follow(ap: &'static Ap) -> ! {
    enable_interrupts();
    let mut followed = 0;
    loop {
        let model = MODEL.load(Ordering::Acquire);
        if model != followed {
            followed = model;
            if model == Model::Flat as u32 { Model::Flat } else { Model::Cluster }.adopt(ap);
            FOLLOWING.fetch_add(1, Ordering::AcqRel);
        }
        ap.beat();
    }
}
