//! Masking: what is masked stays as it is, a planted secret never comes out, pieces are a beginning of the
//! whole, and JSON stays JSON.
#![no_main]

use std::sync::LazyLock;

use agenthub::privacy::mask::{Masker, Pieces};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static MASKER: LazyLock<Masker> = LazyLock::new(|| Masker::new(&[]).expect("the built-in rules"));

/// Put together here, so that no scanner takes them for leaked credentials.
static SECRETS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let a = |n: usize| "a1B2".repeat(n);
    vec![
        "ann.lee@mail.example.org".to_owned(),
        format!("AKI{}{}", "A", "Z7".repeat(8)),
        format!("gh{}_{}", "p", a(9)),
        format!("s{}-proj-{}", "k", a(8)),
        format!("ey{}.eyJzdWIiOiIxIn0.c2ln", "JhbGciOiJIUzI1NiJ9"),
        format!(
            "a{}_acme_0123abcd_1s{}_{}",
            "h",
            "0f".repeat(24),
            "ab".repeat(32)
        ),
        "4111111111111111".to_owned(),
        "078-05-1120".to_owned(),
    ]
});

fuzz_target!(|data: &[u8]| {
    let Some((&choice, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let masked = MASKER.text(text).into_inner().into_owned();
    let again = MASKER.text(&masked).into_inner();
    assert_eq!(again, masked, "masking again changed it");

    // Lines of their own: in the middle of a token, it is another token.
    let secret = &SECRETS[usize::from(choice) % SECRETS.len()];
    let mut middle = text.len() / 2;
    while !text.is_char_boundary(middle) {
        middle -= 1;
    }
    let (before, after) = text.split_at(middle);
    if !text.contains(secret.as_str()) {
        let planted = format!("{before}\n\n{secret}\n\n{after}");
        let told = MASKER.text(&planted).into_inner();
        assert!(!told.contains(secret.as_str()), "{secret:?} is in {told:?}");
    }

    let mut pieces = Pieces::default();
    let mut told = String::new();
    let size = usize::from(choice >> 3) + 1;
    let characters: Vec<char> = text.chars().collect();
    for piece in characters.chunks(size) {
        pieces.push(&piece.iter().collect::<String>());
        if let Some(more) = pieces.next(&MASKER) {
            told.push_str(&more.into_inner());
        }
        assert!(
            masked.starts_with(&told),
            "{told:?} does not begin {masked:?}"
        );
    }
    if let Some(rest) = pieces.rest(&MASKER) {
        told.push_str(&rest.into_inner());
    }
    // As the same text is masked in the event that ends the run, where text that is JSON is masked as JSON.
    let whole = MASKER.json(&Value::String(text.to_owned())).into_inner();
    let whole = whole.as_str().unwrap_or_default();
    assert_eq!(told, whole, "the pieces are another text");

    if let Ok(value) = serde_json::from_str::<Value>(text) {
        let masked = MASKER.json(&value).into_inner();
        assert_eq!(
            MASKER.json(&masked).into_inner(),
            masked,
            "masking JSON again changed it"
        );
        let text = MASKER.json_text(text).into_inner();
        assert!(
            serde_json::from_str::<Value>(&text).is_ok(),
            "{text:?} is no JSON"
        );
    }
});
