//! When each task of virtual time goes on, and which is first.

/// When a task goes on, and who is first of those who go on at the same time: a random number, drawn anew each time.
pub(super) type Due = (u64, u64);

/// Due of a task that only others can make go on.
pub(super) const NEVER: Due = (u64::MAX, u64::MAX);

/// The dues of tasks, and a tournament among them: after a change only the matches above that task are played again, so that a thousand
/// vCPUs take each other's turns no slower than a few.
pub(super) struct Agenda {
    /// Of each task; filled up with [`NEVER`] to a power of two.
    due: Vec<Due>,
    /// Who won: that of match 1 is first of all, and match `n` is between the winners of `2 * n` and `2 * n + 1`. In the place of matches
    /// from `due.len()` on stand the tasks.
    winners: Vec<usize>,
}

impl Agenda {
    /// One without tasks.
    pub(super) fn new() -> Agenda {
        Agenda { due: vec![NEVER], winners: vec![0] }
    }

    /// The task that is first, and when; the lower number if two are due at once, any with [`NEVER`] if none is.
    pub(super) fn first(&self) -> (usize, Due) {
        let task = self.winner(1);
        (task, self.due[task])
    }

    /// Says when a task goes on.
    pub(super) fn set(&mut self, task: usize, due: Due) {
        if task >= self.due.len() {
            self.grow(task + 1);
        }
        self.due[task] = due;
        let mut played = (self.due.len() + task) / 2;
        while played >= 1 {
            let winner = self.play(played);
            let before = std::mem::replace(&mut self.winners[played], winner);
            if before == winner && winner != task {
                // Another won, and would have: nothing changes above.
                break;
            }
            played /= 2;
        }
    }

    fn grow(&mut self, tasks: usize) {
        let places = tasks.next_power_of_two();
        self.due.resize(places, NEVER);
        self.winners = vec![0; places];
        for played in (1..places).rev() {
            self.winners[played] = self.play(played);
        }
    }

    fn play(&self, played: usize) -> usize {
        let (lower, higher) = (self.winner(2 * played), self.winner(2 * played + 1));
        if self.due[higher] < self.due[lower] { higher } else { lower }
    }

    fn winner(&self, played: usize) -> usize {
        played.checked_sub(self.due.len()).unwrap_or_else(|| self.winners[played])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_is_found_as_by_looking_at_all(changes in prop::collection::vec((0..70_usize, 0..9_u64, 0..2_u64), 0..200)) {
            let mut agenda = Agenda::new();
            let mut all = [NEVER; 70];
            prop_assert_eq!(agenda.first().1, NEVER);
            for (task, at, order) in changes {
                let due = if at == 0 { NEVER } else { (at, order) };
                agenda.set(task, due);
                all[task] = due;
                let first = (0..all.len()).min_by_key(|task| all[*task]).expect("some task");
                let found = agenda.first();
                prop_assert_eq!(found.1, all[first]);
                prop_assert!(found.0 == first || found.1 == NEVER);
            }
        }
    }
}
