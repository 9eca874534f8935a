//! One file of text, and for Rust its code without comments and literals.

use super::Breach;

/// A file of the tree.
pub(crate) struct Source {
    /// Its path in the tree, with `/`.
    pub(crate) path: String,
    /// As it is.
    pub(crate) text: String,
    /// For Rust: comments and literals blanked, line breaks kept.
    pub(crate) code: String,
}

impl Source {
    pub(crate) fn new(path: String, text: String) -> Self {
        let code = if path.ends_with(".rs") { blank(&text) } else { String::new() };
        Self { path, text, code }
    }

    /// The code up to the tests, which are a module at the end.
    pub(crate) fn product_code(&self) -> &str {
        let is_test = |part: &str| part == "tests" || part == "tests.rs";
        // In the crate `tests` everything is one, and is held by the rules for all.
        if self.path.split('/').skip(1).any(is_test) {
            return "";
        }
        let tests = self.code.match_indices("#[cfg(test)]").find(|(at, attribute)| {
            let rest = self.code.get(at + attribute.len()..).unwrap_or_default().trim_start();
            rest.starts_with("mod tests {")
        });
        tests.and_then(|(at, _)| self.code.get(..at)).unwrap_or(&self.code)
    }

    /// A breach at a line counted from 0.
    pub(crate) fn breach(&self, line: usize, what: impl Into<String>) -> Breach {
        Breach { path: self.path.clone(), line: line + 1, what: what.into() }
    }

    /// A breach for every line that `broken` finds fault with.
    pub(crate) fn each_line(text: &str, mut broken: impl FnMut(&str) -> bool) -> Vec<usize> {
        text.lines().enumerate().filter(|(_, line)| broken(line)).map(|(number, _)| number).collect()
    }
}

/// What the scanner is in.
enum Inside {
    Code,
    Line,
    /// Block comments nest.
    Block(usize),
    /// A literal that ends with a quote and this many `#`; escapes only in plain ones.
    Text {
        hashes: usize,
        escapes: bool,
    },
}

/// The text with comments, strings and characters turned into blanks.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut inside = Inside::Code;
    let mut index = 0;
    while index < chars.len() {
        let here = at(index);
        // How many characters are done with, and whether they are code.
        let (length, is_code) = match inside {
            Inside::Code => match (here, at(index + 1)) {
                ('/', '/') => {
                    inside = Inside::Line;
                    (2, false)
                }
                ('/', '*') => {
                    inside = Inside::Block(1);
                    (2, false)
                }
                ('"', _) => {
                    inside = Inside::Text { hashes: 0, escapes: true };
                    (1, false)
                }
                ('r', '"' | '#') if !ends_word(index.checked_sub(1).map_or(' ', at)) => {
                    let hashes = (index + 1..).take_while(|&index| at(index) == '#').count();
                    if at(index + 1 + hashes) == '"' {
                        inside = Inside::Text { hashes, escapes: false };
                        (2 + hashes, false)
                    } else {
                        (1, true)
                    }
                }
                ('\'', '\\') => {
                    let length = (index + 3..).take_while(|&index| !matches!(at(index), '\'' | '\0')).count();
                    (length + 4, false)
                }
                ('\'', _) if at(index + 2) == '\'' => (3, false),
                _ => (1, true),
            },
            Inside::Line => {
                if here == '\n' {
                    inside = Inside::Code;
                }
                (1, false)
            }
            Inside::Block(depth) => match (here, at(index + 1)) {
                ('*', '/') => {
                    inside = if depth == 1 { Inside::Code } else { Inside::Block(depth - 1) };
                    (2, false)
                }
                ('/', '*') => {
                    inside = Inside::Block(depth + 1);
                    (2, false)
                }
                _ => (1, false),
            },
            Inside::Text { hashes, escapes } => match here {
                '\\' if escapes => (2, false),
                '"' if (1..=hashes).all(|offset| at(index + offset) == '#') => {
                    inside = Inside::Code;
                    (1 + hashes, false)
                }
                _ => (1, false),
            },
        };
        for done in index..(index + length).min(chars.len()) {
            let kept = is_code || at(done) == '\n';
            code.push(if kept { at(done) } else { ' ' });
        }
        index += length;
    }
    code
}

/// Whether an `r` behind this one only ends a longer word; `br` begins a literal too.
fn ends_word(before: char) -> bool {
    (before.is_alphanumeric() || before == '_') && before != 'b'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let code = blank(text);
        assert_eq!(code.split_whitespace().collect::<Vec<_>>().join(" "), expected, "{text}");
        assert_eq!(code.lines().count(), text.lines().count(), "{text}");
    }

    #[test]
    fn comments_and_literals_are_blanked() {
        check("a // b\nc", "a c");
        check("a /* b /* c */\n d */ e", "a e");
        check("a \"b // \\\" c\" d", "a d");
        check("a r#\"b \" c\"# d", "a d");
        check("a br\"b\" d", "a b d");
        check("a '\"' b '\\'' c '\\u{1f}' d", "a b c d");
    }

    #[test]
    fn lifetimes_and_raw_words_are_code() {
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}");
        check("r#type b", "r#type b");
    }

    #[test]
    fn tests_are_no_product_code() {
        let text = "use a;\n#[cfg(test)]\nmod tests {\n use b;\n}\n";
        let of = |path: &str| Source::new(path.to_owned(), text.to_owned());
        assert_eq!(of("x/src/a.rs").product_code(), "use a;\n");
        assert_eq!(of("x/src/a/tests.rs").product_code(), "");
        assert_eq!(of("x/tests/a.rs").product_code(), "");
        assert_eq!(of("tests/src/a.rs").product_code(), "use a;\n");
    }
}
