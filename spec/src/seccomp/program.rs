//! A filter as one BPF program: a search tree over the system calls' numbers.
//!
//! When a program is installed the kernel runs it once for every number, to learn
//! what it may answer without running it again (`seccomp_cache_prepare`, since Linux
//! 5.11), and translates it to machine code. A list of comparisons, a program for
//! every answer, makes both a good part of a container's start; a tree does not.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

use super::InvalidFilter;

/// Longest program the kernel takes (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;

// linux/bpf_common.h: classes, sizes, modes and operations used here.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_ABOVE: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// linux/seccomp.h: offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `SECCOMP_RET_KILL_PROCESS`.
const KILL: u32 = 0x8000_0000;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Below,
    AtMost,
    AtLeast,
    Above,
    /// The argument's bits under the mask are those of the value under it.
    Masked(u64),
}

/// What must hold of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, 0 to 5.
    argument: u32,
    /// Whether all 64 bits count, or only the low 32.
    wide: bool,
    compare: Compare,
    value: u64,
}

impl Condition {
    /// # Errors
    /// [`InvalidFilter`] for a seventh argument.
    pub(super) fn new(
        argument: u8,
        wide: bool,
        compare: Compare,
        value: u64,
    ) -> Result<Self, InvalidFilter> {
        if argument > 5 {
            let why = format!("system calls have no argument {argument}; they count from 0 to 5");
            return Err(InvalidFilter::Compile { why });
        }
        Ok(Self { argument: argument.into(), wide, compare, value })
    }

    /// The code: its last instruction jumps to where the rule fails, and the one
    /// after it is reached where the condition holds.
    fn emit(self, program: &mut Fragment) {
        let (high, low) = (half(self.value >> 32), half(self.value));
        let place = ARGUMENTS + 8 * self.argument;
        // Every architecture we know is little-endian.
        let (low_place, high_place) = (place, place + 4);
        if self.wide {
            program.load(high_place);
            match self.compare {
                Compare::Equal => program.unless(IF_EQUAL, high, Side::Fails),
                Compare::NotEqual => program.unless(IF_EQUAL, high, Side::Holds),
                Compare::Above | Compare::AtLeast => {
                    program.when(IF_ABOVE, high, Side::Holds);
                    program.unless(IF_EQUAL, high, Side::Fails);
                }
                Compare::Below | Compare::AtMost => {
                    program.when(IF_ABOVE, high, Side::Fails);
                    program.unless(IF_EQUAL, high, Side::Holds);
                }
                Compare::Masked(mask) => {
                    let mask = half(mask >> 32);
                    program.push(AND, mask);
                    program.unless(IF_EQUAL, high & mask, Side::Fails);
                }
            }
        }
        program.load(low_place);
        match self.compare {
            Compare::Equal => program.unless(IF_EQUAL, low, Side::Fails),
            Compare::NotEqual => program.when(IF_EQUAL, low, Side::Fails),
            Compare::Above => program.unless(IF_ABOVE, low, Side::Fails),
            Compare::AtLeast => program.unless(IF_AT_LEAST, low, Side::Fails),
            Compare::Below => program.when(IF_AT_LEAST, low, Side::Fails),
            Compare::AtMost => program.when(IF_ABOVE, low, Side::Fails),
            Compare::Masked(mask) => {
                let mask = half(mask);
                program.push(AND, mask);
                program.unless(IF_EQUAL, low & mask, Side::Fails);
            }
        }
        program.close();
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the other half is taken by itself")]
const fn half(value: u64) -> u32 {
    value as u32
}

/// Where a comparison inside a condition leads; the other way is the next instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Holds,
    Fails,
}

/// The code of one condition while it is written.
#[derive(Debug, Default)]
struct Fragment {
    code: Vec<sock_filter>,
    /// Comparisons that lead somewhere: index, whether on true, and where.
    open: Vec<(usize, bool, Side)>,
}

impl Fragment {
    fn push(&mut self, code: u16, k: u32) {
        self.code.push(sock_filter { code, jt: 0, jf: 0, k });
    }

    fn load(&mut self, place: u32) {
        self.push(LOAD, place);
    }

    /// Goes to `side` if the comparison is true.
    fn when(&mut self, code: u16, k: u32, side: Side) {
        self.open.push((self.code.len(), true, side));
        self.push(code, k);
    }

    /// Goes to `side` if the comparison is false.
    fn unless(&mut self, code: u16, k: u32, side: Side) {
        self.open.push((self.code.len(), false, side));
        self.push(code, k);
    }

    /// Adds "holds: skip one" and "fails: jump", and leads the comparisons there.
    /// The length of the jump is the rule's to fill in.
    fn close(&mut self) {
        let holds = self.code.len();
        self.push(JUMP, 1);
        self.push(JUMP, 0);
        for (index, on_true, side) in self.open.drain(..) {
            let target = holds + usize::from(side == Side::Fails);
            // At most eight instructions lie between.
            let distance = u8::try_from(target - index - 1).unwrap_or(u8::MAX);
            if let Some(instruction) = self.code.get_mut(index) {
                *(if on_true { &mut instruction.jt } else { &mut instruction.jf }) = distance;
            }
        }
    }
}

/// What is answered where all of some conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    answer: u32,
}

/// Answers by number and arguments. Of the rules of one system call that match,
/// the one that was added first decides.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    rules: BTreeMap<u32, Vec<Rule>>,
    otherwise: u32,
    last: u32,
    above: u32,
}

impl Filter {
    /// A filter that answers `otherwise` where no rule matches, and `above` to
    /// numbers greater than `last`, whatever the rules.
    pub(super) const fn new(otherwise: u32, last: u32, above: u32) -> Self {
        Self { rules: BTreeMap::new(), otherwise, last, above }
    }

    /// Adds a rule; without conditions it matches every call.
    pub(super) fn add(&mut self, number: u32, conditions: Vec<Condition>, answer: u32) {
        let rules = self.rules.entry(number).or_default();
        // What follows an unconditional rule is never reached.
        if rules.last().is_none_or(|rule| !rule.conditions.is_empty()) {
            rules.push(Rule { conditions, answer });
        }
    }

    /// Whether no rule has been added.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The program.
    ///
    /// # Errors
    /// [`InvalidFilter`] where it is longer than the kernel takes, or the machine
    /// is not one of x86_64, aarch64 and riscv64.
    pub(super) fn compile(&self) -> Result<BpfProgram, InvalidFilter> {
        let statement = |code, k| sock_filter { code, jt: 0, jf: 0, k };
        let mut program = vec![
            statement(LOAD, ARCH),
            sock_filter { code: IF_EQUAL, jt: 1, jf: 0, k: architecture()? },
            statement(RETURN, KILL),
            statement(LOAD, NUMBER),
        ];
        program.extend(tree(&self.ranges()));
        if program.len() > LONGEST {
            let why = format!(
                "it has {} instructions, and the kernel takes {LONGEST} at most; shorten the profile",
                program.len()
            );
            return Err(InvalidFilter::Compile { why });
        }
        Ok(program)
    }

    /// The numbers cut where the answer changes: first number, and its code.
    fn ranges(&self) -> Vec<(u32, Vec<sock_filter>)> {
        let plain = |answer| vec![sock_filter { code: RETURN, jt: 0, jf: 0, k: answer }];
        let mut ranges: Vec<(u32, Vec<sock_filter>)> = Vec::new();
        let mut begin = |number: u32, code: Vec<sock_filter>| match ranges.last_mut() {
            Some((first, known)) if *first == number => *known = code,
            Some((_, known)) if *known == code => {}
            _ => ranges.push((number, code)),
        };
        begin(0, plain(self.otherwise));
        for (&number, rules) in self.rules.range(..=self.last) {
            begin(number, leaf(rules, self.otherwise));
            if let Some(next) = number.checked_add(1) {
                begin(next, plain(self.otherwise));
            }
        }
        if let Some(next) = self.last.checked_add(1) {
            begin(next, plain(self.above));
        }
        ranges
    }
}

/// `AUDIT_ARCH_*` of this machine (linux/audit.h).
fn architecture() -> Result<u32, InvalidFilter> {
    match std::env::consts::ARCH {
        "x86_64" => Ok(0xc000_003e),
        "aarch64" => Ok(0xc000_00b7),
        "riscv64" => Ok(0xc000_00f3),
        other => Err(InvalidFilter::Arch { arch: other.to_owned() }),
    }
}

/// The code of one system call: its rules in turn.
fn leaf(rules: &[Rule], otherwise: u32) -> Vec<sock_filter> {
    let mut code = Vec::new();
    for rule in rules {
        let mut failing = Vec::new();
        for condition in &rule.conditions {
            let mut fragment = Fragment::default();
            condition.emit(&mut fragment);
            code.append(&mut fragment.code);
            failing.push(code.len() - 1);
        }
        code.push(sock_filter { code: RETURN, jt: 0, jf: 0, k: rule.answer });
        let end = code.len();
        for index in failing {
            if let Some(jump) = code.get_mut(index) {
                // Programs longer than the kernel's 4,096 are refused.
                jump.k = u32::try_from(end - index - 1).unwrap_or(u32::MAX);
            }
        }
    }
    if rules.last().is_none_or(|rule| !rule.conditions.is_empty()) {
        code.push(sock_filter { code: RETURN, jt: 0, jf: 0, k: otherwise });
    }
    code
}

/// A search tree over ranges, the number being in the accumulator.
fn tree(ranges: &[(u32, Vec<sock_filter>)]) -> Vec<sock_filter> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some((first, code)) = upper.first() else { return Vec::new() };
    if lower.is_empty() {
        return code.clone();
    }
    let (lower, upper) = (tree(lower), tree(upper));
    let mut program = Vec::with_capacity(lower.len() + upper.len() + 2);
    if let Ok(skipped) = u8::try_from(lower.len()) {
        program.push(sock_filter { code: IF_AT_LEAST, jt: skipped, jf: 0, k: *first });
    } else {
        // Conditional jumps are short.
        program.push(sock_filter { code: IF_AT_LEAST, jt: 0, jf: 1, k: *first });
        let skipped = u32::try_from(lower.len()).unwrap_or(u32::MAX);
        program.push(sock_filter { code: JUMP, jt: 0, jf: 0, k: skipped });
    }
    program.extend(lower);
    program.extend(upper);
    program
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use seccompiler::{
        SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    };

    use super::super::tests::run;
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;

    /// Values at which the two halves of an argument differ or meet.
    fn value() -> impl Strategy<Value = u64> {
        let half = prop::sample::select(vec![0, 1, 2, 3, 0x7fff_ffff, 0x8000_0000, u32::MAX]);
        (half.clone(), half).prop_map(|(high, low)| u64::from(high) << 32 | u64::from(low))
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let compare = prop_oneof![
            prop::sample::select(vec![
                Compare::Equal,
                Compare::NotEqual,
                Compare::Below,
                Compare::AtMost,
                Compare::AtLeast,
                Compare::Above,
            ]),
            value().prop_map(Compare::Masked),
        ];
        (0..6_u8, any::<bool>(), compare, value())
            .prop_map(|(argument, wide, how, value)| Condition::new(argument, wide, how, value))
            .prop_map(Result::unwrap)
    }

    /// The same in the words of another compiler.
    fn theirs(condition: &Condition) -> SeccompCondition {
        let how = match condition.compare {
            Compare::Equal => SeccompCmpOp::Eq,
            Compare::NotEqual => SeccompCmpOp::Ne,
            Compare::Below => SeccompCmpOp::Lt,
            Compare::AtMost => SeccompCmpOp::Le,
            Compare::AtLeast => SeccompCmpOp::Ge,
            Compare::Above => SeccompCmpOp::Gt,
            Compare::Masked(mask) => SeccompCmpOp::MaskedEq(mask),
        };
        let length = if condition.wide { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
        let argument = u8::try_from(condition.argument).unwrap();
        SeccompCondition::new(argument, length, how, condition.value).unwrap()
    }

    proptest! {
        #[test]
        fn answers_are_those_of_another_compiler(
            rules in prop::collection::vec(
                (0..400_u32, prop::collection::vec(condition(), 0..3)), 0..120),
            calls in prop::collection::vec((0..402_u32, prop::array::uniform6(value())), 20),
        ) {
            let mut ours = Filter::new(ALLOW, u32::MAX, 0);
            let mut others: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
            for (number, conditions) in &rules {
                ours.add(*number, conditions.clone(), 0x0005_0001);
                let known = others.entry((*number).into()).or_insert_with(|| Some(Vec::new()));
                if conditions.is_empty() {
                    *known = None;
                } else if let Some(rules) = known {
                    rules.push(SeccompRule::new(conditions.iter().map(theirs).collect()).unwrap());
                }
            }
            let others = others.into_iter().map(|(n, rules)| (n, rules.unwrap_or_default())).collect();
            let arch = std::env::consts::ARCH.try_into().unwrap();
            let (allow, errno) = (SeccompAction::Allow, SeccompAction::Errno(1));
            let others: BpfProgram =
                SeccompFilter::new(others, allow, errno, arch).unwrap().try_into().unwrap();
            let ours = ours.compile().unwrap();
            let listed = rules.iter().map(|(number, _)| *number);
            for (number, args) in calls
                .iter()
                .copied()
                .chain(listed.zip(calls.iter().map(|(_, args)| *args)))
            {
                prop_assert_eq!(
                    run(&ours, number, args), run(&others, number, args), "{} {:x?}", number, args);
            }
        }
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let equal = |value| vec![Condition::new(0, false, Compare::Equal, value).unwrap()];
        let mut filter = Filter::new(ALLOW, 9, 4);
        filter.add(5, equal(1), 1);
        filter.add(5, equal(1), 2);
        filter.add(5, Vec::new(), 3);
        filter.add(5, equal(2), 2);
        filter.add(11, Vec::new(), 3);
        let program = filter.compile().unwrap();
        let answers = [(5, 1), (5, 2), (4, 0), (6, 0), (9, 0), (10, 0), (11, 0), (u32::MAX, 0)]
            .map(|(number, argument)| run(&program, number, [argument, 0, 0, 0, 0, 0]));
        assert_eq!(answers, [1, 3, ALLOW, ALLOW, ALLOW, 4, 4, 4]);
    }

    #[test]
    fn long_rules_and_many_numbers_are_within_reach_of_jumps() {
        let not = |value| Condition::new(0, false, Compare::NotEqual, value).unwrap();
        let mut filter = Filter::new(ALLOW, 500, 4);
        filter.add(100, (0..300).map(not).collect(), 1);
        for number in (0..500).step_by(2) {
            filter.add(number, Vec::new(), 2);
        }
        let program = filter.compile().unwrap();
        let ask = |number, argument| run(&program, number, [argument, 0, 0, 0, 0, 0]);
        assert_eq!([ask(100, 299), ask(100, 300), ask(101, 0), ask(498, 0)], [2, 1, ALLOW, 2]);
        filter.add(101, (0..2000).map(not).collect(), 1);
        let refused = filter.compile().unwrap_err().to_string();
        assert!(refused.contains("4096 at most"), "{refused}");
    }
}
