//! What tells a number from a number that matters.

/// Whether digits, with or without separators, are a payment card's number: its length, its first
/// digits, and the Luhn sum (ISO/IEC 7812-1). Numbers that begin with 1 are left alone, since epoch
/// timestamps do.
pub(super) fn is_card_number(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    if text
        .chars()
        .any(|c| !c.is_ascii_digit() && c != ' ' && c != '-')
    {
        return false;
    }
    let prefix = digits.iter().take(2).fold(0, |n, d| n * 10 + d);
    let length_fits = match prefix {
        40..=49 => matches!(digits.len(), 13 | 16 | 19),
        34 | 37 => digits.len() == 15,
        30 | 36 | 38 | 39 => digits.len() == 14,
        22..=27 | 51..=55 => digits.len() == 16,
        35 | 50 | 56..=69 => (16..=19).contains(&digits.len()),
        _ => false,
    };
    let luhn = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| match (i % 2, d * 2) {
            (0, _) => *d,
            (_, doubled) => doubled / 10 + doubled % 10,
        });
    length_fits && luhn.sum::<u32>() % 10 == 0
}

/// Whether a text is an IBAN: letters, length, and the remainder of ISO 7064 MOD 97-10.
pub(super) fn is_iban(text: &str) -> bool {
    let plain: Vec<char> = text.chars().filter(|c| *c != ' ').collect();
    if !(15..=34).contains(&plain.len()) {
        return false;
    }
    let moved = plain[4..].iter().chain(&plain[..4]);
    let remainder = moved.fold(0_u32, |n, c| match c.to_digit(36) {
        Some(value @ 0..=9) => (n * 10 + value) % 97,
        Some(value) => (n * 100 + value) % 97,
        None => 0,
    });
    remainder == 1
}

/// Whether `ddd-dd-dddd` is a US social security number that can have been issued.
pub(super) fn is_ssn(text: &str) -> bool {
    let mut parts = text.split('-');
    let mut part = || parts.next().unwrap_or_default();
    let (area, group, serial) = (part(), part(), part());
    area != "000" && area != "666" && !area.starts_with('9') && group != "00" && serial != "0000"
}
