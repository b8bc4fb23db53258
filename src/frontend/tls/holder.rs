//! Who holds a client certificate, in words.
//!
//! The handshake has verified the certificate; here its names are read. What cannot be read is left out, and what could be
//! read in two ways is made to be read in one: names go into grants.

use crate::call::Certificate;
use ring::io::der::{self, Tag};
use rustls::pki_types::CertificateDer;
use std::{
    fmt::Write,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use untrusted::{Input, Reader};
use webpki::EndEntityCert;

/// Tag of the set that a relative distinguished name is.
const SET: u8 = 0x31;
/// Types of text whose bytes are UTF-8: UTF8String, PrintableString, IA5String.
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// The attribute types that RFC 4514 section 3 has a word for, as DER has their object identifiers.
const WORDS: [(&[u8], &str); 9] = [
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
];

/// What `der` says of its holder; `None` if it is no certificate.
pub(super) fn certificate(der: &CertificateDer<'_>) -> Option<Certificate> {
    let parsed = EndEntityCert::try_from(der).ok()?;
    let text = |name: &str| -> Option<Arc<str>> { (!name.chars().any(char::is_control)).then(|| name.into()) };
    Some(Certificate {
        uris: parsed.valid_uri_names().filter_map(text).collect(),
        // One for many hosts is nobody in particular.
        hosts: parsed.valid_dns_names().filter(|name| !name.contains('*')).filter_map(text).collect(),
        subject: subject(parsed.subject()).filter(|subject| !subject.is_empty()).map(Arc::from),
        until: not_after(der)?,
    })
}

/// A distinguished name as RFC 4514 writes it, last part first.
fn subject(name: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    let mut sets = Reader::new(Input::from(name));
    while !sets.at_end() {
        let (tag, set) = der::read_tag_and_get_value(&mut sets).ok()?;
        if tag != SET {
            return None;
        }
        let (mut pairs, mut part) = (Reader::new(set), String::new());
        while !pairs.at_end() {
            let mut pair = Reader::new(der::expect_tag_and_get_value(&mut pairs, Tag::Sequence).ok()?);
            let kind = der::expect_tag_and_get_value(&mut pair, Tag::OID).ok()?;
            let (tag, value) = der::read_tag_and_get_value(&mut pair).ok()?;
            if !part.is_empty() {
                part.push('+');
            }
            attribute(&mut part, kind.as_slice_less_safe(), tag, value.as_slice_less_safe())?;
        }
        parts.push(part);
    }
    parts.reverse();
    Some(parts.join(","))
}

fn attribute(out: &mut String, kind: &[u8], tag: u8, value: &[u8]) -> Option<()> {
    let word = WORDS.iter().find(|(known, _)| *known == kind).map(|(_, word)| *word);
    let text = TEXTS.contains(&tag).then(|| std::str::from_utf8(value).ok()).flatten();
    match (word, text) {
        (Some(word), Some(text)) => {
            out.push_str(word);
            out.push('=');
            escape(out, text);
        }
        // RFC 4514 section 2.4: the bytes of the value, its tag and length included.
        _ => {
            match word {
                Some(word) => out.push_str(word),
                None => identifier(out, kind)?,
            }
            out.push_str("=#");
            let length = u8::try_from(value.len()).ok()?;
            let long = if length < 0x80 { &[][..] } else { &[0x81] };
            for byte in [tag].iter().chain(long).chain([&length]).chain(value) {
                write!(out, "{byte:02x}").ok()?;
            }
        }
    }
    Some(())
}

/// RFC 4514 section 2.4.
fn escape(out: &mut String, text: &str) {
    let last = text.chars().count().saturating_sub(1);
    for (at, c) in text.chars().enumerate() {
        match c {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => out.extend(['\\', c]),
            '#' | ' ' if at == 0 => out.extend(['\\', c]),
            ' ' if at == last => out.extend(['\\', c]),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                // Writing to a string does not fail.
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| _ = write!(out, "\\{byte:02x}"));
            }
            c => out.push(c),
        }
    }
}

/// An object identifier with dots (X.690 section 8.19).
fn identifier(out: &mut String, der: &[u8]) -> Option<()> {
    let mut numbers = Vec::new();
    let mut number = 0_u64;
    for byte in der {
        number = number.checked_mul(128)?.checked_add(u64::from(byte & 0x7f))?;
        if byte & 0x80 == 0 {
            numbers.push(std::mem::take(&mut number));
        }
    }
    let (first, rest) = numbers.split_first()?;
    let root = (*first / 40).min(2);
    write!(out, "{root}.{}", first - root * 40).ok()?;
    rest.iter().try_for_each(|number| write!(out, ".{number}").ok())
}

/// The end of the validity (RFC 5280 section 4.1.2.5), which stands behind four other fields.
fn not_after(der: &[u8]) -> Option<SystemTime> {
    let mut certificate = Reader::new(Input::from(der));
    let mut certificate = Reader::new(der::expect_tag_and_get_value(&mut certificate, Tag::Sequence).ok()?);
    let mut body = Reader::new(der::expect_tag_and_get_value(&mut certificate, Tag::Sequence).ok()?);
    let (tag, _version) = der::read_tag_and_get_value(&mut body).ok()?;
    // Version 1 does not say so.
    let skipped = if tag == u8::from(Tag::ContextSpecificConstructed0) { 3 } else { 2 };
    for _ in 0..skipped {
        der::read_tag_and_get_value(&mut body).ok()?;
    }
    let mut validity = Reader::new(der::expect_tag_and_get_value(&mut body, Tag::Sequence).ok()?);
    der::read_tag_and_get_value(&mut validity).ok()?;
    let (tag, value) = der::read_tag_and_get_value(&mut validity).ok()?;
    time(tag, value.as_slice_less_safe())
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &[u8]) -> Option<SystemTime> {
    let digits = text.strip_suffix(b"Z")?;
    let number = |part: &[u8]| -> Option<u64> {
        part.iter().try_fold(0, |n, byte| byte.is_ascii_digit().then(|| n * 10 + u64::from(byte - b'0')))
    };
    let (year, rest) = if tag == u8::from(Tag::UTCTime) {
        let (year, rest) = digits.split_at_checked(2)?;
        let year = number(year)?;
        (if year < 50 { 2000 + year } else { 1900 + year }, rest)
    } else if tag == u8::from(Tag::GeneralizedTime) {
        let (year, rest) = digits.split_at_checked(4)?;
        (number(year)?, rest)
    } else {
        return None;
    };
    if rest.len() != 10 {
        return None;
    }
    let part = |at: usize| number(&rest[at..at + 2]);
    let (month, day) = (part(0)?, part(2)?);
    if !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    // Days since 1970 of the civil calendar, years beginning in March: the leap day is then a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let seconds = part(4)? * 3600 + part(6)? * 60 + part(8)?;
    // Whoever ended before 1970 has ended.
    let since_1970 = days.saturating_sub(719_468) * 86_400 + seconds;
    UNIX_EPOCH.checked_add(Duration::from_secs(since_1970))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    fn read(change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        change(&mut params);
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        certificate(made.der()).unwrap()
    }

    fn seconds(time: SystemTime) -> u64 {
        time.duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[test]
    fn alternative_names_are_read() {
        let found = read(|params| {
            params.subject_alt_names = vec![
                SanType::URI("spiffe://example.org/ns/a/sa/web".try_into().unwrap()),
                SanType::DnsName("web.example".try_into().unwrap()),
                SanType::DnsName("*.example".try_into().unwrap()),
            ];
        });
        assert_eq!(found.uris, [Arc::<str>::from("spiffe://example.org/ns/a/sa/web")]);
        assert_eq!(found.hosts, [Arc::<str>::from("web.example")]);
        assert_eq!(found.subject, None);
    }

    #[test]
    fn a_name_with_a_control_character_is_none() {
        let found = read(|params| {
            params.subject_alt_names = vec![SanType::URI("spiffe://a/web\0.evil".try_into().unwrap())];
        });
        assert_eq!(found.uris, [] as [Arc<str>; 0]);
    }

    #[test]
    fn a_subject_is_written_as_rfc_4514_does() {
        let found = read(|params| {
            let mut name = DistinguishedName::new();
            name.push(DnType::CountryName, "DE");
            name.push(DnType::OrganizationName, "Acme, Inc.");
            name.push(DnType::CommonName, " web+1 ");
            params.distinguished_name = name;
        });
        assert_eq!(found.subject.as_deref(), Some(r"CN=\ web\+1\ ,O=Acme\, Inc.,C=DE"));
    }

    /// Two parts can be forged by one that contains a comma only where it is not escaped.
    #[test]
    fn one_part_never_reads_as_two() {
        let of = |parts: &[(DnType, &str)]| {
            read(|params| {
                let mut name = DistinguishedName::new();
                parts.iter().for_each(|(kind, value)| name.push(kind.clone(), *value));
                params.distinguished_name = name;
            })
        };
        let two = of(&[(DnType::OrganizationName, "acme"), (DnType::CommonName, "web")]);
        let one = of(&[(DnType::CommonName, "web,O=acme")]);
        assert_eq!(two.subject.as_deref(), Some("CN=web,O=acme"));
        assert_ne!(two.subject, one.subject);
    }

    #[test]
    fn what_has_no_word_is_written_with_numbers() {
        let found = read(|params| {
            params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]), "a@b");
        });
        let subject = found.subject.unwrap();
        assert!(subject.starts_with("1.2.840.113549.1.9.1=#") && subject.ends_with("03614062"), "{subject}");
    }

    #[test]
    fn the_end_of_validity_is_read_in_both_forms() {
        for (year, month, day, expected) in [
            (2026, 11, 30, 1_795_996_800),
            (2000, 2, 29, 951_782_400),
            (2049, 12, 31, 2_524_521_600),
            (2100, 3, 1, 4_107_542_400),
        ] {
            let found = read(|params| params.not_after = rcgen::date_time_ymd(year, month, day));
            assert_eq!(seconds(found.until), expected, "{year}");
        }
        assert_eq!(time(0x17, b"7001010000Z"), None);
        assert_eq!(time(0x04, b"700101000000Z"), None);
        assert_eq!(time(0x17, b"701301000000Z"), None);
    }
}
