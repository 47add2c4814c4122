//! Ends what the tests started when the test process ends, however it ends: what is kept in statics is
//! never dropped. A shell does it that reads the processes' ids from a pipe, which the kernel closes.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{LazyLock, Mutex};

const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r what pid; do
    case $what in
    started) pids="$pids$pid " ;;
    ended) pids="${pids%% $pid *} ${pids#* $pid }" ;;
    esac
done
[ -z "${pids# }" ] || kill -9 $pids
"#;

#[allow(clippy::zombie_processes)] // it outlives this process
static REAPER: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    let shell = Command::new("sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Mutex::new(shell.stdin.unwrap())
});

/// From now on `child` ends with this process.
pub fn started(child: &Child) {
    tell("started", child);
}

/// `child` has ended and was waited for: its id may be another's from now on.
pub fn ended(child: &Child) {
    tell("ended", child);
}

fn tell(what: &str, child: &Child) {
    let mut reaper = REAPER.lock().unwrap();
    writeln!(reaper, "{what} {}", child.id()).unwrap();
}
