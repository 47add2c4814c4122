//! The transition scripts.

use std::sync::LazyLock;

use crate::store::Script;

const LEDGER: &str = include_str!("scripts/ledger.lua");
const BUDGET: &str = include_str!("scripts/budget.lua");
const GATE: &str = include_str!("scripts/gate.lua");

macro_rules! scripts {
    ($($name:ident = $file:literal $(, $gate:ident)?;)+) => {$(
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new($file, &[LEDGER, BUDGET, $($gate,)? include_str!(concat!("scripts/", $file, ".lua"))])
        });
    )+};
}

scripts! {
    ADMIT = "admit", GATE;
    CANCEL = "cancel", GATE;
    CLAIM = "claim", GATE;
    SETTLE = "settle";
    RESOLVE = "resolve", GATE;
    READ = "read", GATE;
    SESSION_READ = "session_read", GATE;
    SESSION_CREATE = "session_create";
    SESSION_DELETE = "session_delete";
    ABANDON = "abandon";
    ACQUIRE = "acquire";
    RECORD = "record";
    RENEW = "renew";
    FLUSHED = "flushed";
    SWEEP = "sweep";
    REBUILD = "rebuild";
}
