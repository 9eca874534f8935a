//! The paths that Rust code names, with the groups of `use` taken apart.

/// A path as the code names it: `std::fs::File` is three parts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Line, from 0.
    pub(crate) line: usize,
    pub(crate) parts: Vec<String>,
    /// It stands in a `use`, where one part alone names a crate or a module.
    pub(crate) in_use: bool,
}

impl Named {
    /// Whether it begins with the parts of `prefix`, written `a::b`.
    ///
    /// One part alone is only taken for a path in a `use`: elsewhere it is a name.
    pub(crate) fn begins_with(&self, prefix: &str) -> bool {
        let mut parts = self.parts.iter();
        let begins = prefix.split("::").all(|wanted| parts.next().is_some_and(|part| part == wanted));
        begins && (self.in_use || self.parts.len() > 1)
    }

    /// Whether a part of it is `name`.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part == name)
    }
}

/// A piece of code.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Colons,
    /// Any other character.
    Other(char),
}

/// Every path in `code`, which has neither comments nor literals.
pub(crate) fn named(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let mut reader = Reader { tokens: &tokens, at: 0, in_use: false, found: Vec::new() };
    while let Some((_, token)) = reader.here() {
        match token {
            Token::Word(word) if word == "use" => {
                reader.in_use = true;
                reader.at += 1;
            }
            Token::Word(_) => reader.path(&[]),
            Token::Colons if reader.in_use => reader.at += 1,
            Token::Colons => {
                // `<T as Trait>::name`: what follows is nobody's first part.
                reader.at += 1;
                if matches!(reader.here(), Some((_, Token::Word(_)))) {
                    reader.at += 1;
                }
            }
            Token::Other(character) => {
                if *character == ';' {
                    reader.in_use = false;
                }
                reader.at += 1;
            }
        }
    }
    reader.found
}

struct Reader<'tokens> {
    tokens: &'tokens [(usize, Token)],
    at: usize,
    in_use: bool,
    found: Vec<Named>,
}

impl Reader<'_> {
    fn here(&self) -> Option<&(usize, Token)> {
        self.tokens.get(self.at)
    }

    /// Read one path, or in a `use` one tree, that follows `before`.
    fn path(&mut self, before: &[String]) {
        let mut parts = before.to_vec();
        let mut line = None;
        while let Some((number, Token::Word(word))) = self.here() {
            line.get_or_insert(*number);
            parts.push(word.clone());
            self.at += 1;
            if !matches!(self.here(), Some((_, Token::Colons))) {
                break;
            }
            self.at += 1;
            match self.here() {
                Some((_, Token::Other('{'))) if self.in_use => return self.group(&parts),
                // `name::<T>()` ends it, `name::*` as well.
                Some((_, Token::Word(_))) => {}
                _ => break,
            }
        }
        if self.in_use && matches!(self.here(), Some((_, Token::Word(word))) if word == "as") {
            // The name behind `as` is ours.
            self.at += 2;
        }
        if let Some(line) = line {
            self.found.push(Named { line, parts, in_use: self.in_use });
        }
    }

    /// Read `{a, b::c}` of a `use`.
    fn group(&mut self, before: &[String]) {
        self.at += 1;
        loop {
            match self.here() {
                Some((_, Token::Word(_))) => self.path(before),
                Some((_, Token::Other('}'))) => {
                    self.at += 1;
                    return;
                }
                Some((_, Token::Other(';'))) | None => return,
                Some(_) => self.at += 1,
            }
        }
    }
}

fn tokens(code: &str) -> Vec<(usize, Token)> {
    let mut tokens: Vec<(usize, Token)> = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let length = if is_word(first) {
                rest.find(|c: char| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (token, after) = rest.split_at(length);
            rest = after;
            if is_word(first) {
                tokens.push((number, Token::Word(token.to_owned())));
            } else if token == "::" {
                tokens.push((number, Token::Colons));
            } else if !first.is_whitespace() {
                tokens.push((number, Token::Other(first)));
            }
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(code: &str, expected: &[&str]) {
        let paths: Vec<String> = named(code)
            .iter()
            .filter(|named| named.in_use || named.parts.len() > 1)
            .map(|named| format!("{}:{}", named.line, named.parts.join("::")))
            .collect();
        assert_eq!(paths, expected, "{code}");
    }

    #[test]
    fn groups_are_taken_apart() {
        check(
            "use std::{fs, io::{self, Read as _},\n time::Instant};\nuse aya;",
            &["0:std::fs", "0:std::io::self", "0:std::io::Read", "1:std::time::Instant", "2:aya"],
        );
        check("use {aya::Ebpf, crate::kernel};", &["0:aya::Ebpf", "0:crate::kernel"]);
        check("use ::aya::maps::*;", &["0:aya::maps"]);
    }

    #[test]
    fn paths_in_code_are_named() {
        check("let x = std::fs::read(crate::a::b::<T>(y));", &["0:std::fs::read", "0:crate::a::b"]);
        check("aya.read(); <T as A>::aya::b;", &[]);
    }

    #[test]
    fn a_prefix_is_of_whole_parts() {
        let code = named("std::fs::read; aya; use aya_obj;");
        let begins = |prefix| code.iter().any(|named| named.begins_with(prefix));
        assert!(begins("std::fs") && begins("std") && begins("aya_obj"));
        assert!(!begins("std::f") && !begins("aya"));
    }
}
