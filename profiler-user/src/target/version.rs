//! A version of CPython or greenlet: three numbers.

use std::fmt;

/// A version of CPython or greenlet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The first number.
    pub major: u8,
    /// The second.
    pub minor: u8,
    /// The third.
    pub micro: u8,
}

impl Version {
    /// The version of these numbers.
    #[must_use]
    pub const fn new(major: u8, minor: u8, micro: u8) -> Self {
        Self { major, minor, micro }
    }

    /// From CPython's `PY_VERSION_HEX` (0x030d00f0 is 3.13.0).
    /// <https://github.com/python/cpython/blob/v3.13.0/Include/patchlevel.h>
    #[must_use]
    pub const fn from_hex(hex: u32) -> Self {
        let [major, minor, micro, _release] = hex.to_be_bytes();
        Self { major, minor, micro }
    }

    /// From a text that begins with `X.Y` or `X.Y.Z`; anything may follow.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.splitn(3, '.');
        let major = numbers.next()?.parse().ok()?;
        let minor = leading(numbers.next()?)?;
        let micro = numbers.next().and_then(leading).unwrap_or(0);
        Some(Self { major, minor, micro })
    }
}

fn leading(text: &str) -> Option<u8> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.get(..end)?.parse().ok()
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[cfg(test)]
mod tests {
    use super::Version;

    #[test]
    fn reads_what_python_and_pip_write() {
        for (text, expect) in [
            ("3.12.1", Some(Version::new(3, 12, 1))),
            ("3.5.6.post0", Some(Version::new(3, 5, 6))),
            ("3.13", Some(Version::new(3, 13, 0))),
            ("3.13t", Some(Version::new(3, 13, 0))),
            ("3.14.0rc2", Some(Version::new(3, 14, 0))),
            ("3", None),
            ("three.two", None),
            ("3.999.1", None),
        ] {
            assert_eq!(Version::parse(text), expect, "{text}");
        }
        assert_eq!(Version::from_hex(0x030d_00f0), Version::new(3, 13, 0));
    }
}
