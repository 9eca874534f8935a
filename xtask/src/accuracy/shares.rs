//! Pure: the time that a tool gives to each function, held against the books.

use std::collections::BTreeMap;

use super::{
    books::{Books, State},
    subject::Weighted,
};

/// A tool's time by the functions of the books, as shares of all of its time.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares {
    /// Functions that burn or block.
    pub(super) functions: BTreeMap<String, f64>,
    /// Under a function that waits in another greenlet's favour.
    pub(super) sleeping: f64,
    /// All of its time, in nanoseconds.
    pub(super) total_ns: f64,
}

impl Shares {
    /// What a tool saw: a stack is of the function of the books that is nearest to its leaf.
    pub(super) fn seen(stacks: &[Weighted], books: &Books) -> Self {
        let total_ns: f64 = stacks.iter().map(|stack| stack.weight).sum();
        let mut shares = Self { total_ns, ..Self::default() };
        for function in books.functions.iter().filter(|function| function.state != State::Wait) {
            shares.functions.insert(function.function.clone(), 0.0);
        }
        for Weighted { functions, weight } in stacks {
            let booked = functions
                .iter()
                .rev()
                .find_map(|name| books.functions.iter().find(|function| function.function == *name));
            let Some(function) = booked else { continue };
            if function.state == State::Wait {
                shares.sleeping += weight / total_ns;
            } else if let Some(share) = shares.functions.get_mut(&function.function) {
                *share += weight / total_ns;
            }
        }
        shares
    }

    /// The truth: CPU time by function, of all that the threads of the books had.
    pub(super) fn booked(books: &Books) -> Self {
        let total_ns = books.cpu_ns() as f64;
        let booked = books.functions.iter().filter(|function| function.state != State::Wait);
        let functions = booked.map(|function| (function.function.clone(), function.cpu_ns as f64 / total_ns));
        Self { functions: functions.collect(), sleeping: 0.0, total_ns }
    }

    /// How much of this is where the truth has it.
    pub(super) fn right(&self, truth: &Self) -> f64 {
        let truly = |name: &String| truth.functions.get(name).copied().unwrap_or_default();
        self.functions.iter().map(|(name, share)| share.min(truly(name))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn books() -> Books {
        serde_json::from_str(
            r#"{"threads": [{"tid": 1, "wall_ns": 500, "cpu_ns": 100}], "lives": [], "functions": [
                {"function": "burn", "state": "cpu", "cpu_ns": 60, "wall_ns": 70},
                {"function": "block", "state": "blocked", "cpu_ns": 10, "wall_ns": 99},
                {"function": "doze", "state": "wait", "cpu_ns": 0, "wall_ns": 500}]}"#,
        )
        .unwrap()
    }

    fn stack(functions: &[&str], weight: f64) -> Weighted {
        Weighted { functions: functions.iter().map(|&name| name.to_owned()).collect(), weight }
    }

    #[test]
    fn a_stack_is_of_the_function_nearest_to_its_leaf() {
        let stacks = [
            stack(&["main", "burn", "spin"], 40.0),
            stack(&["burn", "doze", "switch"], 40.0),
            stack(&["Hub.run"], 20.0),
        ];
        let seen = Shares::seen(&stacks, &books());
        assert_eq!(seen.functions, [("block".to_owned(), 0.0), ("burn".to_owned(), 0.4)].into());
        assert_eq!((seen.sleeping, seen.total_ns), (0.4, 100.0));
    }

    #[test]
    fn right_is_what_both_have() {
        let truth = Shares::booked(&books());
        assert_eq!(truth.functions["burn"], 0.6);
        let seen = Shares::seen(&[stack(&["burn"], 5.0), stack(&["block"], 5.0)], &books());
        assert!((seen.right(&truth) - 0.6).abs() < 1e-9, "0.5 of burn, 0.1 of block");
        assert_eq!(Shares::seen(&[], &books()).right(&truth), 0.0);
    }
}
