//! Text of the target's as OAP can take it.

use std::borrow::Cow;

/// Characters of a symbol that are kept.
///
/// OAP takes more and shows it; a tree of such lines nobody can read.
const MOST_CHARS: usize = 1_000;
/// What stands in the place of the end of a text that was cut.
const CUT: char = '…';

/// Without control characters and NUL, which OAP stores and hands to browsers as they are, and
/// not too long. Invalid UTF-8, which ends the whole stream, can't be in a `str`.
#[must_use]
pub fn clean(text: &str) -> Cow<'_, str> {
    let long = text.char_indices().nth(MOST_CHARS).is_some();
    if !long && !text.contains(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let kept = if long { MOST_CHARS - 1 } else { MOST_CHARS };
    Cow::Owned(text.chars().take(kept).map(shown).chain(long.then_some(CUT)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_stays_as_it_is() {
        assert!(matches!(clean("größe (a.py:3)"), Cow::Borrowed("größe (a.py:3)")));
        let most = "x".repeat(MOST_CHARS);
        assert_eq!(clean(&most), most);
    }

    #[test]
    fn what_no_terminal_should_see_is_replaced() {
        assert_eq!(clean("a\0b\x1b[31mc\n"), "a\u{fffd}b\u{fffd}[31mc\u{fffd}");
    }

    #[test]
    fn a_long_text_is_cut_between_two_characters() {
        let cut = clean(&"ö".repeat(10_000)).into_owned();
        assert_eq!(cut.chars().count(), MOST_CHARS);
        assert!(cut.ends_with("ö…"));
    }
}
