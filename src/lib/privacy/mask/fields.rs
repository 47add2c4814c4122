//! Names of fields whose values are secret, whatever they look like.

/// Endings of sensitive names, in lower case without separators.
const SENSITIVE: &[&str] = &[
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "accesskey",
    "secretkey",
    "privatekey",
    "signingkey",
    "masterkey",
    "authorization",
    "cookie",
    "credential",
    "credentials",
    "ssn",
    "cvv",
    "cvc",
    "creditcard",
    "cardnumber",
    "iban",
];
/// Names with such an ending that are no secrets.
const HARMLESS: &[&str] = &[
    "pagetoken",
    "nextpagetoken",
    "continuationtoken",
    "maxtoken",
];
/// The longest name that is looked at; a longer one is text.
const MAX_NAME: usize = 64;

/// Whether the value of a field of this name is secret.
pub(super) fn is_sensitive(name: &str) -> bool {
    if name.len() > MAX_NAME {
        return false;
    }
    let plain: String = name
        .chars()
        .filter(|c| !matches!(c, '-' | '_' | '.' | ' '))
        .map(|c| c.to_ascii_lowercase())
        .collect();
    !HARMLESS.contains(&plain.as_str()) && SENSITIVE.iter().any(|ending| plain.ends_with(ending))
}
