//! Problems of a policy file, each with its place and its fix.

use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth a thought.
    Advice,
    /// The file cannot be used.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Diagnostic {
    /// The file as the caller named it.
    pub file: String,
    /// Line, from 1; 0 where the whole file is meant.
    pub line: u64,
    /// Column, from 1; 0 where the whole line is meant.
    pub column: u64,
    /// How bad.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to write instead; may be empty.
    pub help: String,
    /// The offending line of the file; may be empty.
    pub text: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
            if self.column > 0 {
                write!(f, ":{}", self.column)?;
            }
        }
        let kind = match self.severity {
            Severity::Advice => "advice: ",
            Severity::Error => "",
        };
        write!(f, ": {kind}{}", self.message)?;
        if !self.text.is_empty() {
            write!(f, " (here: `{}`)", self.text)?;
        }
        if !self.help.is_empty() {
            write!(f, "; {}", self.help)?;
        }
        Ok(())
    }
}

/// A policy file that cannot be used, with every reason found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidPolicy {
    /// At least one error.
    pub problems: Vec<Diagnostic>,
}

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for InvalidPolicy {}

/// Where in a file something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Line, from 1; 0 where unknown.
    pub line: u64,
    /// Column, from 1; 0 where unknown.
    pub column: u64,
}

/// Collects findings about one file.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    file: &'a str,
    source: &'a str,
    /// Errors.
    pub(super) found: Vec<Diagnostic>,
    /// Advice.
    pub(super) advice: Vec<Diagnostic>,
    /// What this version does not enforce.
    pub(super) unenforced: Vec<Diagnostic>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(file: &'a str, source: &'a str) -> Self {
        let (found, advice, unenforced) = (Vec::new(), Vec::new(), Vec::new());
        Self { file, source, found, advice, unenforced }
    }

    fn make(&self, at: Place, severity: Severity, message: String, help: &str) -> Diagnostic {
        // Finding a line takes time; nobody reads more than so many.
        const WITH_TEXT: usize = 100;
        let many = self.found.len() + self.advice.len() + self.unenforced.len() > WITH_TEXT;
        Diagnostic {
            file: self.file.to_owned(),
            line: at.line,
            column: at.column,
            severity,
            message,
            help: help.to_owned(),
            text: if many { String::new() } else { line_of(self.source, at.line) },
        }
    }

    pub(super) fn error(&mut self, at: Place, message: String, help: &str) {
        let diagnostic = self.make(at, Severity::Error, message, help);
        self.found.push(diagnostic);
    }

    pub(super) fn advice(&mut self, at: Place, message: String, help: &str) {
        let diagnostic = self.make(at, Severity::Advice, message, help);
        self.advice.push(diagnostic);
    }

    pub(super) fn unenforced(&mut self, at: Place, message: String, help: &str) {
        let diagnostic = self.make(at, Severity::Error, message, help);
        self.unenforced.push(diagnostic);
    }
}

/// The text of line `line` (from 1), trimmed and bounded, escapes made visible.
pub(super) fn line_of(source: &str, line: u64) -> String {
    const SHOWN: usize = 120;
    let Some(index) = usize::try_from(line).ok().and_then(|l| l.checked_sub(1)) else {
        return String::new();
    };
    let text = source.lines().nth(index).unwrap_or_default().trim();
    let mut shown: String = text.chars().take(SHOWN).collect::<String>().escape_debug().to_string();
    // `escape_debug` makes quotes ugly, and a policy is full of them.
    shown = shown.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().count() > SHOWN {
        shown.push('…');
    }
    shown
}

/// The candidate nearest to `word`, when it is near enough to be a misspelling.
pub(super) fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    candidates
        .iter()
        .map(|candidate| (distance(word, candidate), *candidate))
        // `on` is no misspelt `down`: something of the word must be left.
        .filter(|(far, candidate)| *far <= 1 + candidate.len() / 4 && *far < word.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance over the first 64 characters.
fn distance(a: &str, b: &str) -> usize {
    const BOUND: usize = 64;
    let b: Vec<char> = b.chars().take(BOUND).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(BOUND).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = Vec::with_capacity(row.len());
        next.push(left);
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            let substitute = diagonal + usize::from(x != *y);
            left = substitute.min(left + 1).min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(BOUND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_offered() {
        let keys = ["host", "port", "ports", "allowed_ips"];
        assert_eq!(nearest("hots", &keys), Some("host"));
        assert_eq!(nearest("hos", &keys), Some("host"));
        assert_eq!(nearest("allowed_ip", &keys), Some("allowed_ips"));
        assert_eq!(nearest("binaries", &keys), None);
    }

    #[test]
    fn hostile_text_is_shown_escaped_and_short() {
        let shown = line_of("a\u{1b}[31mred", 1);
        assert_eq!(shown, "a\\u{1b}[31mred");
        assert!(line_of(&"x".repeat(1000), 1).chars().count() <= 121);
        assert_eq!(line_of("one", 9), "");
    }
}
