//! The machine, and what the stack's processes use of it (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Clock ticks in a second, the same on every Linux platform (`USER_HZ`).
const TICKS_PER_SECOND: f64 = 100.0;

/// One line on where and when.
pub fn describe(commit: &str) -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpu_info = read("/proc/cpuinfo");
    let model = cpu_info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| {
            rest.trim_start_matches([':', ' ', '\t'])
        });
    let memory = read("/proc/meminfo");
    let memory = memory
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib >> 20);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
    format!(
        "At commit {commit}; {date}; {cores} × {model}, {memory} GiB, Linux {}; load average before the \
         start {load}.",
        kernel.split('-').next().unwrap_or_default().trim()
    )
}

/// The stack's processes by name, several workers of one kind as one.
#[derive(Debug)]
pub struct Processes(BTreeMap<String, Vec<u32>>);

/// Seconds of CPU by process name.
pub type CpuSeconds = BTreeMap<String, f64>;

/// Seconds of CPU that this thread has used.
pub fn thread_cpu_seconds() -> f64 {
    let times = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = times.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanos.unwrap_or(0.0) / 1e9
}

/// Seconds of CPU that everything on this machine has used, the time that its host took included.
pub fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let all = stat.lines().next().unwrap_or_default();
    let ticks = all.split_ascii_whitespace().skip(1).take(8).enumerate();
    // The fourth and fifth are idle and waiting.
    let busy = ticks.filter(|(at, _)| !matches!(at, 3 | 4));
    let busy = busy.filter_map(|(_, ticks)| ticks.parse::<f64>().ok());
    busy.sum::<f64>() / TICKS_PER_SECOND
}

/// A process of the stack.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    /// When it started, in clock ticks: the system may give its pid to another one.
    started: u64,
}

impl Process {
    /// Those of the stack's workers that are named `kind` and a number.
    pub fn workers(state: &Path, kind: &str) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for number in 1.. {
            let Ok(text) = fs::read_to_string(state.join(format!("run/{kind}-{number}.pid")))
            else {
                break;
            };
            let (pid, started) = text.trim().split_once(' ').context("a pid file")?;
            found.push(Self {
                pid: pid.parse()?,
                started: started.parse()?,
            });
        }
        Ok(found)
    }

    /// Asks it to end. Says so when it has ended before.
    pub fn terminate(&self) -> Result<()> {
        ensure!(self.runs(), "process {} has ended before", self.pid);
        let kill = std::process::Command::new("kill")
            .args(["-TERM", &self.pid.to_string()])
            .status()?;
        ensure!(kill.success(), "kill: {kill}");
        Ok(())
    }

    pub fn runs(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let started = fields.get(19).and_then(|ticks| ticks.parse().ok());
        started == Some(self.started) && !matches!(fields[0], "Z" | "X")
    }
}

/// Files and connections that this process, and those that are started as it was, may have open.
pub fn open_files() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_ascii_whitespace().next());
    soft.map_or(0, |soft| soft.parse().unwrap_or(usize::MAX))
}

impl Processes {
    /// From the pid files of the stack's state folder; this process is `generator`.
    pub fn find(state: &Path) -> Result<Self> {
        let mut all = BTreeMap::from([("generator".to_owned(), vec![std::process::id()])]);
        for entry in fs::read_dir(state.join("run"))? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            let Some(pid) = text.split(' ').next().and_then(|pid| pid.parse().ok()) else {
                continue;
            };
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = name.trim_end_matches(|c: char| c == '-' || c.is_ascii_digit());
            all.entry(name.to_owned())
                .or_insert_with(Vec::new)
                .push(pid);
        }
        Ok(Self(all))
    }

    /// Takes another process for one of the stack's.
    pub fn add(&mut self, name: &str, pid: u32) {
        self.0.insert(name.to_owned(), vec![pid]);
    }

    /// CPU used so far.
    pub fn cpu(&self) -> CpuSeconds {
        let of = |pids: &Vec<u32>| pids.iter().map(|pid| cpu_seconds(*pid)).sum();
        self.0
            .iter()
            .map(|(name, pids)| (name.clone(), of(pids)))
            .collect()
    }

    /// Resident memory in MiB of the processes with this name.
    pub fn resident_mib(&self, name: &str) -> f64 {
        let pids = self.0.get(name).map_or(&[][..], Vec::as_slice);
        pids.iter().map(|pid| resident_kib(*pid) / 1024.0).sum()
    }
}

/// User and system time of the process and of children that have ended, such as a Redis that rewrites its
/// append-only file (fields 14 to 17 of `stat`).
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command's name, in parentheses, may hold blanks.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_ascii_whitespace().skip(11).take(4);
    ticks.filter_map(|t| t.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

fn resident_kib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_ascii_whitespace().next());
    kib.and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
}
