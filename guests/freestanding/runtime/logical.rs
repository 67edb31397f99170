//! Logical destinations (SDM 3A 11.6.2.2, 11.12.10): which CPU has which logical ID.

use crate::cpu::{Cpu, this_cpu};
use crate::startup::Ap;

/// A model of logical destinations.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Model {
    /// xAPIC, flat: a bit for each of 8 CPUs.
    Flat = 0xffff_ffff,
    /// xAPIC, cluster: 15 clusters of 4 CPUs.
    Cluster = 0x0fff_ffff,
    /// x2APIC: clusters of 16 CPUs, by their APIC IDs.
    X2ApicCluster = 0,
}

impl Model {
    /// How many CPUs can have a logical ID: those of the lowest numbers have.
    fn ids(self) -> u32 {
        match self {
            Model::Flat => 8,
            Model::Cluster => 15 * 4,
            Model::X2ApicCluster => u32::MAX,
        }
    }

    /// Those of the APs that have a logical ID.
    #[must_use]
    pub fn named(self, aps: &[Ap]) -> &[Ap] {
        // The BSP has one of the IDs.
        aps.get(..self.ids() as usize - 1).unwrap_or(aps)
    }

    /// The rest of them.
    #[must_use]
    pub fn nameless(self, aps: &[Ap]) -> &[Ap] {
        aps.get(self.ids() as usize - 1..).unwrap_or_default()
    }

    /// The CPU's logical ID: its cluster and its bit in it. By its number in xAPIC mode; by its APIC ID in x2APIC mode, where the
    /// processor derives it.
    fn id(self, cpu: &Cpu) -> Option<(u32, u32)> {
        let number = cpu.number();
        (number < self.ids()).then(|| match self {
            Model::Flat => (0, 1 << number),
            Model::Cluster => (number / 4, 1 << (number % 4)),
            Model::X2ApicCluster => (cpu.apic_id() / 16, 1 << (cpu.apic_id() % 16)),
        })
    }

    /// The destination field for CPUs of a cluster.
    fn field(self, cluster: u32, bits: u32) -> u32 {
        match self {
            Model::Flat => bits,
            Model::Cluster => cluster << 4 | bits,
            Model::X2ApicCluster => cluster << 16 | bits,
        }
    }

    /// The destination that is this CPU alone; nobody, if it has no logical ID.
    #[must_use]
    pub fn destination(self, cpu: &Cpu) -> u32 {
        self.id(cpu).map_or(0, |(cluster, bits)| self.field(cluster, bits))
    }

    /// Calls `send` with destinations that are together all of these APs that have a logical ID: one for each cluster, when its
    /// members stand side by side.
    pub fn reach_all(self, aps: &[Ap], mut send: impl FnMut(u32)) {
        let mut group: Option<(u32, u32)> = None;
        for (cluster, bit) in aps.iter().filter_map(|ap| self.id(ap)) {
            group = match group {
                Some((current, bits)) if current == cluster => Some((cluster, bits | bit)),
                before => {
                    if let Some((current, bits)) = before {
                        send(self.field(current, bits));
                    }
                    Some((cluster, bit))
                }
            };
        }
        if let Some((cluster, bits)) = group {
            send(self.field(cluster, bits));
        }
    }

    /// In xAPIC mode: the CPU, which is the one that calls, uses the model and its logical ID from here on.
    pub fn adopt(self, cpu: &Cpu) {
        this_cpu().local_apic().set_logical(self as u32, self.destination(cpu));
    }
}
