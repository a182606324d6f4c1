//! Wildcards over texts made of components: paths (`/`) and dotted names (`.`).
//!
//! A pattern is read once into components and then matched component by
//! component, so that a wildcard can never cross a separator by accident.
//! `*` stands for any characters of one component, `?` for one, `[a-z]` and
//! `[!a-z]` for one of a set, `{a,b}` for alternatives, `\x` for `x` itself,
//! and a component that is exactly `**` for any number of components: in paths
//! zero or more (one or more at the end), in dotted names one or more. These
//! are the meanings that OpenShell's engine was measured to have.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use foldhash::fast::FixedState;

/// A hash map whose keys only policies make: who asks cannot choose what
/// collides, so that a fast hash with a fixed seed will do.
pub(crate) type Map<K, V> = HashMap<K, V, FixedState>;

/// Longest pattern accepted, in bytes.
pub const MAX_PATTERN_BYTES: usize = 4096;
/// Most alternatives that the braces of one pattern may spell out.
const MAX_ALTERNATIVES: usize = 64;

/// What separates components, and what `**` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Components end at `/`; `/x/**` covers what is below `/x`, not `/x`.
    Path,
    /// Components end at `.`; `**` stands for at least one of them.
    Dotted,
}

impl Kind {
    /// The separator.
    pub fn separator(self) -> char {
        match self {
            Self::Path => '/',
            Self::Dotted => '.',
        }
    }
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Longer than [`MAX_PATTERN_BYTES`].
    #[error("the pattern is longer than {MAX_PATTERN_BYTES} bytes")]
    TooLong,
    /// `[` without `]`, an empty set, or a range that runs backwards.
    #[error("`[` opens a set that is not closed, empty or runs backwards")]
    Set,
    /// `{` without `}` or the other way round.
    #[error("`{{` and `}}` do not pair up")]
    Braces,
    /// The braces spell out too many alternatives.
    #[error("the braces spell out more than {MAX_ALTERNATIVES} alternatives")]
    TooMany,
    /// The pattern ends in `\`.
    #[error("it ends in a lone `\\`")]
    Escape,
}

/// A compiled pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: Box<str>,
    kind: Kind,
    alternatives: Vec<Vec<Component>>,
}

/// One component of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Component {
    /// Exactly this text.
    Literal(Box<str>),
    /// A text of this shape.
    Shape(Vec<Token>),
    /// Any one component.
    Any,
    /// Any number of components, none included.
    Deep,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Token {
    Char(char),
    One,
    Many,
    Set { negated: bool, ranges: Vec<(char, char)> },
}

impl Token {
    fn admits(&self, c: char) -> bool {
        match self {
            Self::Char(own) => *own == c,
            Self::One | Self::Many => true,
            Self::Set { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

impl Pattern {
    /// Compiles `text`.
    ///
    /// # Errors
    /// [`InvalidPattern`] when it cannot be understood.
    pub fn parse(text: &str, kind: Kind) -> Result<Self, InvalidPattern> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(InvalidPattern::TooLong);
        }
        let mut alternatives = Vec::new();
        for spelled in expand(text)? {
            alternatives.push(components(&spelled, kind));
        }
        Ok(Self { text: text.into(), kind, alternatives })
    }

    /// Compiles a text in which nothing is special.
    pub fn literal(text: &str, kind: Kind) -> Self {
        let parts = text.split(kind.separator()).map(|part| Component::Literal(part.into()));
        Self { text: text.into(), kind, alternatives: vec![parts.collect()] }
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What it separates by.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// True when `text` is covered.
    pub fn matches(&self, text: &str) -> bool {
        let parts: Vec<&str> = text.split(self.kind.separator()).collect();
        self.alternatives.iter().any(|pattern| covers(pattern, &parts))
    }

    /// Whether some text of this kind is covered by both patterns. Exact, but
    /// for patterns so intertwined that the answer would take too long: those
    /// are taken to overlap.
    pub fn overlaps(&self, other: &Self, texts: Texts) -> bool {
        const STATES: usize = 20_000;
        classes(&[self, other], texts, STATES)
            .is_none_or(|classes| classes.iter().any(|(_, covering)| covering.len() == 2))
    }

    /// How many characters of it are no `*`: the measure by which OpenShell
    /// chooses among endpoints for one path.
    pub fn specificity(&self) -> usize {
        self.text.chars().filter(|c| *c != '*').count()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.alternatives == other.alternatives
    }
}

impl Eq for Pattern {}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A character of a pattern, with what it means.
#[derive(Debug, Clone)]
enum Atom {
    /// The character itself, a separator included.
    Plain(char),
    Token(Token),
}

/// Spells out the braces: every alternative as a row of atoms.
fn expand(text: &str) -> Result<Vec<Vec<Atom>>, InvalidPattern> {
    /// One open brace: what came before it, and the finished alternatives.
    struct Level {
        before: Vec<Vec<Atom>>,
        done: Vec<Vec<Atom>>,
    }
    let mut levels: Vec<Level> = Vec::new();
    let mut now: Vec<Vec<Atom>> = vec![Vec::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let atom = match c {
            '\\' => Atom::Plain(chars.next().ok_or(InvalidPattern::Escape)?),
            '*' => Atom::Token(Token::Many),
            '?' => Atom::Token(Token::One),
            '[' => Atom::Token(set(&mut chars)?),
            '{' => {
                let before = std::mem::replace(&mut now, vec![Vec::new()]);
                levels.push(Level { before, done: Vec::new() });
                continue;
            }
            ',' if !levels.is_empty() => {
                let finished = std::mem::replace(&mut now, vec![Vec::new()]);
                if let Some(level) = levels.last_mut() {
                    level.done.extend(finished);
                }
                continue;
            }
            '}' => {
                let mut level = levels.pop().ok_or(InvalidPattern::Braces)?;
                level.done.append(&mut now);
                let count = level.before.len().saturating_mul(level.done.len());
                let longest = |rows: &[Vec<Atom>]| rows.iter().map(Vec::len).max().unwrap_or(0);
                let length = longest(&level.before) + longest(&level.done);
                if count > MAX_ALTERNATIVES || count.saturating_mul(length) > MAX_PATTERN_BYTES {
                    return Err(InvalidPattern::TooMany);
                }
                for before in &level.before {
                    for inner in &level.done {
                        now.push([before.as_slice(), inner.as_slice()].concat());
                    }
                }
                continue;
            }
            other => Atom::Plain(other),
        };
        for row in &mut now {
            row.push(atom.clone());
        }
    }
    if levels.is_empty() { Ok(now) } else { Err(InvalidPattern::Braces) }
}

/// Reads a set after its `[`.
fn set(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, InvalidPattern> {
    let negated = chars.next_if(|c| matches!(c, '!' | '^')).is_some();
    let mut ranges: Vec<(char, char)> = Vec::new();
    let mut first = true;
    loop {
        let low = chars.next().ok_or(InvalidPattern::Set)?;
        if low == ']' && !first {
            break;
        }
        first = false;
        let mut ahead = chars.clone();
        let range = ahead.next() == Some('-') && !matches!(ahead.next(), None | Some(']'));
        let high = if range { chars.nth(1).ok_or(InvalidPattern::Set)? } else { low };
        if low > high {
            return Err(InvalidPattern::Set);
        }
        ranges.push((low, high));
    }
    Ok(Token::Set { negated, ranges })
}

fn components(atoms: &[Atom], kind: Kind) -> Vec<Component> {
    let separator = kind.separator();
    let parts: Vec<&[Atom]> =
        atoms.split(|atom| matches!(atom, Atom::Plain(c) if *c == separator)).collect();
    let last = parts.len().saturating_sub(1);
    let mut list = Vec::with_capacity(parts.len());
    for (n, part) in parts.into_iter().enumerate() {
        if matches!(part, [Atom::Token(Token::Many), Atom::Token(Token::Many)]) {
            if kind == Kind::Dotted || n == last {
                list.push(Component::Any);
            }
            list.push(Component::Deep);
            continue;
        }
        let plain: Option<String> = part
            .iter()
            .map(|atom| match atom {
                Atom::Plain(c) => Some(*c),
                Atom::Token(_) => None,
            })
            .collect();
        list.push(match plain {
            Some(text) => Component::Literal(text.into_boxed_str()),
            None if part.iter().all(|atom| matches!(atom, Atom::Token(Token::Many))) => {
                Component::Any
            }
            None => Component::Shape(shape(part)),
        });
    }
    list
}

fn shape(part: &[Atom]) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::with_capacity(part.len());
    for atom in part {
        let token = match atom {
            Atom::Plain(c) => Token::Char(*c),
            Atom::Token(token) => token.clone(),
        };
        // `**` inside a component means `*`.
        if !(token == Token::Many && tokens.last() == Some(&Token::Many)) {
            tokens.push(token);
        }
    }
    tokens
}

/// Matches components; `Deep` may stand for any number of them. The usual
/// walk with one point to go back to: linear but for `Deep`, never exponential.
fn covers(pattern: &[Component], parts: &[&str]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while let Some(part) = parts.get(t) {
        match pattern.get(p) {
            Some(Component::Deep) => {
                back = Some((p, t));
                p += 1;
                continue;
            }
            Some(component) if component.covers(part) => {
                p += 1;
                t += 1;
                continue;
            }
            _ => {}
        }
        let Some((deep, from)) = back else { return false };
        back = Some((deep, from + 1));
        p = deep + 1;
        t = from + 1;
    }
    pattern.iter().skip(p).all(|component| *component == Component::Deep)
}

impl Component {
    fn covers(&self, part: &str) -> bool {
        match self {
            Self::Literal(own) => **own == *part,
            Self::Shape(tokens) => fits(tokens, part),
            Self::Any | Self::Deep => true,
        }
    }
}

fn fits(tokens: &[Token], text: &str) -> bool {
    let mut p = 0;
    let mut rest = text.chars();
    let mut back: Option<(usize, std::str::Chars<'_>)> = None;
    loop {
        if tokens.get(p) == Some(&Token::Many) {
            back = Some((p, rest.clone()));
            p += 1;
            continue;
        }
        let mut ahead = rest.clone();
        match (ahead.next(), tokens.get(p)) {
            (None, None) => return true,
            (Some(c), Some(token)) if token.admits(c) => {
                p += 1;
                rest = ahead;
            }
            _ => {
                let Some((many, from)) = &mut back else { return false };
                if from.next().is_none() {
                    return false;
                }
                rest = from.clone();
                p = *many + 1;
            }
        }
    }
}

/// Many patterns of one kind, matched together: the time to look a text up
/// grows with the patterns that match it, not with those that do not.
#[derive(Debug, Clone)]
pub struct Trie<V> {
    kind: Kind,
    nodes: Vec<Node<V>>,
}

#[derive(Debug, Clone)]
struct Node<V> {
    literals: Map<Box<str>, usize>,
    shapes: Vec<(Vec<Token>, usize)>,
    any: Option<usize>,
    deep: Option<usize>,
    /// Stays where it is on every component: the node after `**`.
    stays: bool,
    values: Vec<V>,
}

impl<V> Default for Node<V> {
    fn default() -> Self {
        Self {
            literals: Map::default(),
            shapes: Vec::new(),
            any: None,
            deep: None,
            stays: false,
            values: Vec::new(),
        }
    }
}

impl<V: Copy + Ord> Trie<V> {
    /// An empty one.
    pub fn new(kind: Kind) -> Self {
        Self { kind, nodes: vec![Node::default()] }
    }

    /// Adds `value` under `pattern`, which must be of this trie's kind.
    pub fn insert(&mut self, pattern: &Pattern, value: V) {
        debug_assert_eq!(pattern.kind, self.kind, "patterns of one kind");
        for alternative in &pattern.alternatives {
            let mut at = 0;
            for component in alternative {
                at = self.step(at, component);
            }
            if let Some(node) = self.nodes.get_mut(at)
                && !node.values.contains(&value)
            {
                node.values.push(value);
            }
        }
    }

    fn step(&mut self, at: usize, component: &Component) -> usize {
        let new = self.nodes.len();
        let Some(node) = self.nodes.get_mut(at) else { return at };
        let to = match component {
            Component::Literal(text) => *node.literals.entry(text.clone()).or_insert(new),
            Component::Any => *node.any.get_or_insert(new),
            Component::Deep => *node.deep.get_or_insert(new),
            Component::Shape(tokens) => {
                if let Some((_, to)) = node.shapes.iter().find(|(own, _)| own == tokens) {
                    *to
                } else {
                    node.shapes.push((tokens.clone(), new));
                    new
                }
            }
        };
        if to == new {
            let stays = *component == Component::Deep;
            self.nodes.push(Node { stays, ..Node::default() });
        }
        to
    }

    /// The values of all patterns that cover `text`, sorted, each once.
    pub fn find(&self, text: &str) -> Vec<V> {
        let mut now = Vec::with_capacity(8);
        let mut next = Vec::with_capacity(8);
        self.enter(0, &mut now);
        for part in text.split(self.kind.separator()) {
            for at in now.drain(..) {
                let Some(node) = self.nodes.get(at) else { continue };
                if node.stays {
                    self.enter(at, &mut next);
                }
                if let Some(to) = node.any {
                    self.enter(to, &mut next);
                }
                if let Some(to) = node.literals.get(part) {
                    self.enter(*to, &mut next);
                }
                for (tokens, to) in &node.shapes {
                    if fits(tokens, part) {
                        self.enter(*to, &mut next);
                    }
                }
            }
            next.sort_unstable();
            next.dedup();
            std::mem::swap(&mut now, &mut next);
            if now.is_empty() {
                return Vec::new();
            }
        }
        let mut values: Vec<V> = Vec::new();
        for node in now.iter().filter_map(|at| self.nodes.get(*at)) {
            values.extend_from_slice(&node.values);
        }
        values.sort_unstable();
        values.dedup();
        values
    }

    /// Adds a node, and those behind it that need no component.
    fn enter(&self, mut at: usize, into: &mut Vec<usize>) {
        loop {
            into.push(at);
            match self.nodes.get(at).and_then(|node| node.deep) {
                Some(deep) => at = deep,
                None => return,
            }
        }
    }
}

/// The texts that [`classes`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    /// Host names: no empty label, only characters of host names.
    Hosts,
    /// Canonical request paths: absolute, no empty segment but the last.
    RequestPaths,
    /// Paths of files: absolute, no empty component.
    Files,
    /// Any text; components end at `.`.
    Values,
}

impl Texts {
    fn separator(self) -> char {
        match self {
            Self::Hosts | Self::Values => '.',
            Self::RequestPaths | Self::Files => '/',
        }
    }

    /// Whether `c` may follow `last`.
    fn goes_on(self, last: Option<char>, c: char) -> bool {
        let separator = c == self.separator();
        match self {
            Self::Values => true,
            Self::Hosts if separator => last.is_some_and(|last| last != c),
            Self::Hosts => matches!(c, 'a'..='z' | '0'..='9' | '-' | '_'),
            Self::RequestPaths | Self::Files => match last {
                None => separator,
                Some(last) => last != c || !separator,
            },
        }
    }

    fn may_end(self, last: Option<char>) -> bool {
        match self {
            Self::Values => true,
            Self::RequestPaths => last.is_some(),
            Self::Hosts | Self::Files => last.is_some_and(|last| last != self.separator()),
        }
    }
}

/// The ways in which texts can differ to a set of patterns: one example for
/// each combination of patterns that some text matches, with the indexes of
/// those patterns. The combination of none is among them where it exists.
///
/// Exact: built from the patterns' automata, not from samples. `None` when the
/// patterns intertwine in more than `limit` states.
pub fn classes(
    patterns: &[&Pattern],
    texts: Texts,
    limit: usize,
) -> Option<Vec<(String, Vec<usize>)>> {
    let machine = Machine::new(patterns, texts);
    // Whether the last character was a separator is part of the state: it
    // decides how a text may go on.
    let start = (None, machine.start());
    let mut seen = BTreeSet::from([start.clone()]);
    let mut found: BTreeMap<Vec<usize>, String> = BTreeMap::new();
    let mut queue = VecDeque::from([(start, String::new())]);
    while let Some(((_, states), text)) = queue.pop_front() {
        let last = text.chars().next_back();
        if texts.may_end(last) {
            found.entry(machine.accepted(&states)).or_insert_with(|| text.clone());
        }
        for c in &machine.alphabet {
            if !texts.goes_on(last, *c) {
                continue;
            }
            let next = (Some(*c == machine.separator), machine.next(&states, *c));
            if seen.insert(next.clone()) {
                if seen.len() > limit {
                    return None;
                }
                queue.push_back((next, format!("{text}{c}")));
            }
        }
    }
    Some(found.into_iter().map(|(signature, text)| (text, signature)).collect())
}

/// Where a pattern stands: pattern, alternative, component, token in it.
type State = (usize, usize, usize, usize);
/// A component for the automaton: whether it is `**`, and its tokens.
type Part = (bool, Vec<Token>);

struct Machine {
    patterns: Vec<Vec<Vec<Part>>>,
    separator: char,
    alphabet: Vec<char>,
}

impl Machine {
    fn new(patterns: &[&Pattern], texts: Texts) -> Self {
        let as_tokens = |component: &Component| match component {
            Component::Literal(text) => (false, text.chars().map(Token::Char).collect()),
            Component::Shape(tokens) => (false, tokens.clone()),
            Component::Any => (false, vec![Token::Many]),
            Component::Deep => (true, Vec::new()),
        };
        let patterns: Vec<Vec<Vec<Part>>> = patterns
            .iter()
            .map(|pattern| {
                pattern.alternatives.iter().map(|row| row.iter().map(as_tokens).collect()).collect()
            })
            .collect();
        let mut alphabet = BTreeSet::from([texts.separator()]);
        for token in patterns.iter().flatten().flatten().flat_map(|(_, tokens)| tokens) {
            if let Token::Char(c) = token {
                alphabet.insert(*c);
            }
            let Token::Set { ranges, .. } = token else { continue };
            for (low, high) in ranges {
                alphabet.extend([*low, *high]);
                // The characters just outside, where they exist.
                alphabet.extend(char::from_u32((*low as u32).wrapping_sub(1)));
                alphabet.extend(char::from_u32(*high as u32 + 1));
            }
        }
        if texts == Texts::Hosts {
            // Few enough to take them all; sets and their complements need it.
            alphabet.extend(('a'..='z').chain('0'..='9').chain(['-', '_']));
        }
        // One character that no pattern names stands for all of those.
        let other = ('a'..='z').chain('0'..='9').chain('\u{e0}'..='\u{ff}');
        alphabet.extend(other.into_iter().find(|c| !alphabet.contains(c)));
        Self { patterns, separator: texts.separator(), alphabet: alphabet.into_iter().collect() }
    }

    fn row(&self, state: &State) -> Option<&Vec<Part>> {
        self.patterns.get(state.0)?.get(state.1)
    }

    fn start(&self) -> Vec<State> {
        let mut states = Vec::new();
        for (p, alternatives) in self.patterns.iter().enumerate() {
            for a in 0..alternatives.len() {
                self.enter((p, a, 0, 0), &mut states);
            }
        }
        states.sort_unstable();
        states.dedup();
        states
    }

    /// Enters a state with all that follow without reading a character.
    fn enter(&self, state: State, into: &mut Vec<State>) {
        let mut todo = vec![state];
        while let Some(state) = todo.pop() {
            if into.contains(&state) {
                continue;
            }
            into.push(state);
            let (p, a, c, t) = state;
            let Some((deep, tokens)) = self.row(&state).and_then(|row| row.get(c)) else {
                continue;
            };
            if tokens.get(t) == Some(&Token::Many) {
                todo.push((p, a, c, t + 1));
            }
            // `**` may stand for no component, but only where one begins:
            // its token index is 0 there, and 1 within.
            if *deep && t == 0 {
                todo.push((p, a, c + 1, 0));
            }
        }
    }

    fn next(&self, states: &[State], c: char) -> Vec<State> {
        let mut next = Vec::new();
        for state in states {
            let (p, a, at, t) = *state;
            let Some((deep, tokens)) = self.row(state).and_then(|row| row.get(at)) else {
                continue;
            };
            if c == self.separator {
                if *deep {
                    self.enter((p, a, at, 0), &mut next);
                } else if t >= tokens.len() && self.row(state).is_some_and(|row| at + 1 < row.len())
                {
                    self.enter((p, a, at + 1, 0), &mut next);
                }
                continue;
            }
            if *deep {
                self.enter((p, a, at, 1), &mut next);
                continue;
            }
            match tokens.get(t) {
                Some(Token::Many) => self.enter((p, a, at, t), &mut next),
                Some(token) if token.admits(c) => self.enter((p, a, at, t + 1), &mut next),
                _ => {}
            }
        }
        next.sort_unstable();
        next.dedup();
        next
    }

    fn accepted(&self, states: &[State]) -> Vec<usize> {
        let mut accepted: Vec<usize> = states
            .iter()
            .filter(|state| {
                self.row(state).is_some_and(|row| {
                    let (_, _, at, t) = **state;
                    let done = match row.get(at) {
                        Some((true, _)) => true,
                        Some((false, tokens)) => t >= tokens.len(),
                        None => false,
                    };
                    done && row.iter().skip(at + 1).all(|(deep, _)| *deep)
                })
            })
            .map(|state| state.0)
            .collect();
        accepted.sort_unstable();
        accepted.dedup();
        accepted
    }
}

#[cfg(test)]
mod tests;
