//! `vlapic_calcdest`: which vCPUs an interrupt is for.

use crate::cpuset::CpuSet;

/// The destination of an interrupt, as its sender names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The destination field: 8 bits, or 32 in x2APIC format.
    pub dest: u32,
    /// Whether the field is a message destination address (logical mode) rather than an APIC ID (physical mode).
    pub logical: bool,
    /// Whether the field is in x2APIC format: the sender's mode for an IPI, false for I/O APIC and MSI.
    pub x2apic: bool,
}

impl Destination {
    /// Whether everybody is meant, in physical and in logical mode (SDM 3A 11.6.2.1, 11.12.9).
    #[must_use]
    pub const fn is_broadcast(self) -> bool {
        self.dest == if self.x2apic { 0xffff_ffff } else { 0xff }
    }
}

/// What a local APIC compares a logical destination with (SDM 3A 11.6.2.2, 11.12.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogicalId {
    /// Logical destination register.
    pub ldr: u32,
    /// Destination format register; 0 in x2APIC mode.
    pub dfr: u32,
    /// Whether the local APIC is in x2APIC mode.
    pub x2apic: bool,
}

impl LogicalId {
    /// Whether the local APIC answers to a logical destination that is no broadcast.
    #[must_use]
    pub fn matches(self, destination: Destination) -> bool {
        let mda = destination.dest;
        match self.dfr >> 28 {
            // Flat model: the MDA is a mask of 8 bits.
            0xf => self.ldr >> 24 & mda & 0xff != 0,
            // Cluster model. The format of the MDA is the sender's, that of the LDR the receiver's.
            0x0 => {
                let (mda_cluster, mda_members) =
                    if destination.x2apic { (mda >> 16, mda & 0xffff) } else { (mda >> 4 & 0xf, mda & 0xf) };
                let (cluster, members) = if self.x2apic {
                    (self.ldr >> 16, self.ldr & 0xffff)
                } else {
                    (self.ldr >> 28, self.ldr >> 24 & 0xf)
                };
                cluster == mda_cluster && members & mda_members != 0
            }
            _ => false,
        }
    }
}

/// The vCPUs that an interrupt without a shorthand is for: always among the `active` ones.
///
/// * Broadcast: all active vCPUs, in either mode.
/// * Physical: the vCPU whose number is the APIC ID (the two are the same in every version), if it is below `max_cpus`
///   and active.
/// * Logical: the active vCPUs whose LDR and DFR match; with `lowest_priority` the first of them only. A vCPU whose DFR
///   names no known model is passed over. `logical_id` tells a vCPU's registers.
pub fn calcdest(
    destination: Destination,
    lowest_priority: bool,
    active: CpuSet,
    max_cpus: usize,
    logical_id: impl Fn(usize) -> Option<LogicalId>,
) -> CpuSet {
    if destination.is_broadcast() {
        return active;
    }
    if !destination.logical {
        let cpu = destination.dest as usize;
        return if cpu < max_cpus { active & CpuSet::single(cpu) } else { CpuSet::EMPTY };
    }
    let matching = active.iter().filter(|&cpu| logical_id(cpu).is_some_and(|id| id.matches(destination)));
    matching.take(if lowest_priority { 1 } else { usize::MAX }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cpus(list: &[usize]) -> CpuSet {
        list.iter().copied().collect()
    }

    fn physical(dest: u32, x2apic: bool) -> Destination {
        Destination { dest, logical: false, x2apic }
    }

    fn logical(dest: u32, x2apic: bool) -> Destination {
        Destination { dest, logical: true, x2apic }
    }

    /// The LDR of an x2APIC with this ID (SDM 3A 11.12.10.2).
    fn x2apic_id(id: usize) -> LogicalId {
        LogicalId { ldr: (id as u32 >> 4) << 16 | 1 << (id & 0xf), dfr: 0, x2apic: true }
    }

    #[test]
    fn only_active_vcpus_are_reached() {
        let active = cpus(&[0, 2]);
        let find = |destination| calcdest(destination, false, active, 4, |_| None);
        assert_eq!(find(physical(1, false)), CpuSet::EMPTY, "the INIT of a lazy userspace");
        assert_eq!(find(physical(2, false)), CpuSet::single(2));
        assert_eq!(find(physical(0xff, false)), active);
        assert_eq!(find(logical(0xff, false)), active);
        assert_eq!(find(physical(0xff, true)), CpuSet::EMPTY, "0xff is an ordinary x2APIC ID");
        assert_eq!(find(physical(0xffff_ffff, true)), active);
    }

    #[test]
    fn an_id_from_maxcpus_on_is_nobody() {
        let active = cpus(&[0, 5]);
        assert_eq!(calcdest(physical(5, false), false, active, 5, |_| None), CpuSet::EMPTY);
        assert_eq!(calcdest(physical(5, false), false, active, 6, |_| None), CpuSet::single(5));
        assert_eq!(calcdest(physical(0x8000_0000, true), false, active, 6, |_| None), CpuSet::EMPTY);
    }

    #[test]
    fn flat_model_is_a_mask_and_lowest_priority_takes_the_first() {
        let flat = |cpu: usize| Some(LogicalId { ldr: 1 << (24 + cpu), dfr: 0xffff_ffff, x2apic: false });
        let active = cpus(&[0, 1, 2, 3]);
        assert_eq!(calcdest(logical(0b1010, false), false, active, 16, flat), cpus(&[1, 3]));
        assert_eq!(calcdest(logical(0b1010, false), true, active, 16, flat), cpus(&[1]));
    }

    #[test]
    fn xapic_cluster_model_compares_cluster_and_members() {
        // Two clusters of two.
        let cluster = |cpu: usize| {
            Some(LogicalId { ldr: ((cpu as u32 / 2) << 4 | 1 << (cpu % 2)) << 24, dfr: 0x0fff_ffff, x2apic: false })
        };
        let active = cpus(&[0, 1, 2, 3]);
        assert_eq!(calcdest(logical(0x13, false), false, active, 16, cluster), cpus(&[2, 3]));
        assert_eq!(calcdest(logical(0x02, false), false, active, 16, cluster), cpus(&[1]));
    }

    #[test]
    fn x2apic_clusters_are_of_sixteen() {
        let active: CpuSet = (0..40).collect();
        let find = |dest| calcdest(logical(dest, true), false, active, 256, |cpu| Some(x2apic_id(cpu)));
        assert_eq!(find(0x0001_8001), cpus(&[16, 31]));
        assert_eq!(find(0x0002_0080), cpus(&[39]));
        assert_eq!(find(0x0002_0100), CpuSet::EMPTY);
    }

    #[test]
    fn an_unknown_model_is_passed_over() {
        let odd = |_| Some(LogicalId { ldr: 0xff00_0000, dfr: 0x5fff_ffff, x2apic: false });
        assert_eq!(calcdest(logical(0xfe, false), false, cpus(&[0, 1]), 16, odd), CpuSet::EMPTY);
    }

    /// `vlapic_calcdest`, bit by bit, as the history describes it.
    fn naive(
        destination: Destination,
        lowest: bool,
        active: &[usize],
        max_cpus: usize,
        ids: &[LogicalId],
    ) -> Vec<usize> {
        let Destination { dest, logical, x2apic } = destination;
        let mut found = Vec::new();
        for &cpu in active {
            let hit = if (x2apic && dest == u32::MAX) || (!x2apic && dest == 0xff) {
                true
            } else if !logical {
                dest as usize == cpu && cpu < max_cpus
            } else {
                let LogicalId { ldr, dfr, x2apic: receiver } = ids[cpu];
                let bit = |word: u32, n: u32| word & 1 << n != 0;
                match dfr & 0xf000_0000 {
                    0xf000_0000 => (0..8).any(|n| bit(dest, n) && bit(ldr, n + 24)),
                    0 => {
                        let mda = if x2apic { (dest / 0x1_0000, dest % 0x1_0000) } else { (dest / 16 % 16, dest % 16) };
                        let own = if receiver { (ldr / 0x1_0000, ldr % 0x1_0000) } else { (ldr >> 28, ldr >> 24 & 15) };
                        mda.0 == own.0 && (0..16).any(|n| bit(mda.1, n) && bit(own.1, n))
                    }
                    _ => false,
                }
            };
            let stop = hit && lowest && logical && !((x2apic && dest == u32::MAX) || (!x2apic && dest == 0xff));
            if hit {
                found.push(cpu);
            }
            if stop {
                break;
            }
        }
        found
    }

    fn logical_ids() -> impl Strategy<Value = Vec<LogicalId>> {
        let xapic = (any::<u8>(), prop_oneof![Just(0xffff_ffff_u32), Just(0x0fff_ffff), Just(0x7fff_ffff)])
            .prop_map(|(ldr, dfr)| LogicalId { ldr: u32::from(ldr) << 24, dfr, x2apic: false });
        let x2apic = (0_usize..64).prop_map(x2apic_id);
        proptest::collection::vec(prop_oneof![xapic, x2apic], 32)
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_model(
            ids in logical_ids(),
            dest in prop_oneof![0_u32..40, 0_u32..0x100, 0_u32..0x4_0000, any::<u32>(), Just(0xff), Just(u32::MAX)],
            is_logical: bool, x2apic: bool, lowest: bool,
            members in proptest::collection::btree_set(0_usize..32, 0..32),
            max_cpus in 1_usize..33,
        ) {
            let destination = Destination { dest: if x2apic { dest } else { dest & 0xff }, logical: is_logical, x2apic };
            let active: Vec<usize> = members.into_iter().collect();
            let found = calcdest(destination, lowest, cpus(&active), max_cpus, |cpu| Some(ids[cpu]));
            prop_assert_eq!(found.iter().collect::<Vec<_>>(), naive(destination, lowest, &active, max_cpus, &ids));
        }
    }
}
