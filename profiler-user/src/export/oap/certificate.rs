//! Who signed a certificate, and until when it is valid: as much of X.509 as that takes.
//!
//! Pure. rustls judges certificates; this is for who reads what `oap check` says.

use super::failure::line;

/// DER's tags (<https://www.rfc-editor.org/rfc/rfc5280#section-4.1>).
const INTEGER: u8 = 0x02;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
/// The common name and the organization, 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANIZATION: &[u8] = &[0x55, 4, 10];
/// Parts of a name that are looked at.
const MOST_PARTS: usize = 32;

/// What is shown of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Who signed it.
    pub issuer: String,
    /// Its last day, `YYYY-MM-DD`.
    pub last_day: String,
    /// The end of its validity, in seconds since 1970.
    pub ends: i64,
}

impl Certificate {
    /// Reads one. None: it is none.
    #[must_use]
    pub fn of(der: &[u8]) -> Option<Self> {
        let mut certificate = Der(Der(der).expect(SEQUENCE)?);
        let mut signed = Der(certificate.expect(SEQUENCE)?);
        let first = signed.next()?;
        if first.0 == VERSION {
            let _number = signed.expect(INTEGER)?;
        } else if first.0 != INTEGER {
            return None;
        }
        let _algorithm = signed.expect(SEQUENCE)?;
        let issuer = name(signed.expect(SEQUENCE)?);
        let mut validity = Der(signed.expect(SEQUENCE)?);
        let _begins = validity.next()?;
        let (tag, text) = validity.next()?;
        let (last_day, ends) = moment(tag, text)?;
        Some(Self { issuer, last_day, ends })
    }
}

struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value and its tag.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, mut rest) = rest.split_first()?;
        let mut length = usize::from(*first);
        if length >= 0x80 {
            let count = length & 0x7f;
            if count == 0 || count > 4 {
                return None;
            }
            let (bytes, after) = rest.split_at_checked(count)?;
            length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
            rest = after;
        }
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, value))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|found| found.0 == tag).map(|found| found.1)
    }
}

/// The common name, else the organization, else that it has none.
fn name(der: &[u8]) -> String {
    let (mut parts, mut organization) = (Der(der), None);
    for _ in 0..MOST_PARTS {
        let Some(part) = parts.expect(SET) else { break };
        let Some(pair) = Der(part).expect(SEQUENCE) else { continue };
        let mut pair = Der(pair);
        let (Some(object), Some((_, text))) = (pair.expect(OBJECT), pair.next()) else { continue };
        let text = || line(&String::from_utf8_lossy(text));
        if object == COMMON_NAME {
            return text();
        }
        if object == ORGANIZATION {
            organization = Some(text());
        }
    }
    organization.unwrap_or_else(|| "one without a name".to_owned())
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn moment(tag: u8, text: &[u8]) -> Option<(String, i64)> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = match tag {
        UTC_TIME => {
            let century = if text.get(..2)? < "50" { "20" } else { "19" };
            format!("{century}{text}")
        }
        GENERALIZED_TIME => text.to_owned(),
        _ => return None,
    };
    if digits.len() != 14 {
        return None;
    }
    let number = |from: usize, to: usize| digits.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let seconds = number(8, 10)? * 3_600 + number(10, 12)? * 60 + number(12, 14)?;
    Some((format!("{year:04}-{month:02}-{day:02}"), days(year, month, day) * 86_400 + seconds))
}

/// Days since 1970 of a date (<https://howardhinnant.github.io/date_algorithms.html>).
const fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, date_time_ymd};

    use super::*;

    fn made(names: &[(DnType, &str)], year: i32) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, text) in names {
            params.distinguished_name.push(kind.clone(), *text);
        }
        params.not_after = date_time_ymd(year, 3, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_certificate_is_read() {
        let names = [(DnType::OrganizationName, "Shop"), (DnType::CommonName, "Shop's\nCA")];
        let read = Certificate::of(&made(&names, 2048)).unwrap();
        let expected = Certificate {
            issuer: "Shop's CA".to_owned(),
            last_day: "2048-03-01".to_owned(),
            ends: 2_466_633_600,
        };
        assert_eq!(read, expected);
        // Beyond 2049 the other form of a time is used.
        let read = Certificate::of(&made(&names[..1], 2100)).unwrap();
        assert_eq!((read.issuer.as_str(), read.ends), ("Shop", 4_107_542_400));
        let read = Certificate::of(&made(&[], 1999)).unwrap();
        assert_eq!((read.issuer.as_str(), read.last_day.as_str()), ("one without a name", "1999-03-01"));
    }

    #[test]
    fn what_is_cut_is_none() {
        let whole = made(&[], 2030);
        for end in 0..whole.len() / 4 {
            assert_eq!(Certificate::of(&whole[..end]), None);
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_without_harm(
            bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0_usize..500, with: u8,
        ) {
            let _read = Certificate::of(&bytes);
            let mut certificate = made(&[(DnType::CommonName, "x")], 2030);
            let at = at % certificate.len();
            certificate[at] = with;
            let _read = Certificate::of(&certificate);
        }
    }
}
