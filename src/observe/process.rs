//! What the operating system tells of this process, under the names that every exporter has for it. Linux alone tells.

use std::{fs, io};

/// Figures of a process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// User and system time.
    pub cpu_seconds: f64,
    pub virtual_bytes: u64,
    pub resident_bytes: u64,
    pub threads: u64,
    /// Since 1970.
    pub start_seconds: f64,
    pub open_files: u64,
    /// `None`: without a limit.
    pub open_files_max: Option<u64>,
}

impl Process {
    /// This process, as it is now.
    ///
    /// # Errors
    /// Where there is no `/proc`, or not as Linux has it.
    pub fn now() -> io::Result<Self> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{name}"));
        let units = Units {
            ticks_per_second: rustix::param::clock_ticks_per_second() as f64,
            page_bytes: rustix::param::page_size() as u64,
        };
        let open_files = fs::read_dir("/proc/self/fd")?.count() as u64;
        let (stat, machine, limits) = (read("self/stat")?, read("stat")?, read("self/limits")?);
        parse(&stat, &machine, &limits, open_files, units)
            .ok_or_else(|| io::Error::other("/proc is not understood"))
    }
}

/// What the kernel counts in.
#[derive(Clone, Copy)]
struct Units {
    ticks_per_second: f64,
    page_bytes: u64,
}

fn parse(
    stat: &str,
    machine: &str,
    limits: &str,
    open_files: u64,
    units: Units,
) -> Option<Process> {
    // A program's name may hold spaces and brackets; what follows the last one is numbers, from the third on (proc(5)).
    let numbers: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let number = |nth: usize| numbers.get(nth - 3)?.parse::<u64>().ok();
    let seconds = |ticks: u64| ticks as f64 / units.ticks_per_second;
    let line = |text: &'static str, of: &str| -> Option<String> {
        of.lines().find_map(|line| line.strip_prefix(text)).map(str::to_owned)
    };
    let booted: f64 = line("btime ", machine)?.trim().parse().ok()?;
    let soft = line("Max open files", limits)?;
    Some(Process {
        cpu_seconds: seconds(number(14)? + number(15)?),
        threads: number(20)?,
        start_seconds: booted + seconds(number(22)?),
        virtual_bytes: number(23)?,
        resident_bytes: number(24)? * units.page_bytes,
        open_files,
        open_files_max: soft.split_ascii_whitespace().next()?.parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_behind_whatever_name_the_program_has() {
        let stat = "42 (out) rig ger) S 1 2 3 0 -1 4194560 5 6 7 8 150 50 0 0 20 0 9 0 3000 123456789 256 18446744073709551615 1";
        let machine = "cpu  1 2 3\nbtime 1700000000\nprocesses 7\n";
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 4096                 files     \n";
        let units = Units { ticks_per_second: 100.0, page_bytes: 4096 };

        let found = parse(stat, machine, limits, 12, units).unwrap();

        let expected = Process {
            cpu_seconds: 2.0,
            virtual_bytes: 123_456_789,
            resident_bytes: 256 * 4096,
            threads: 9,
            start_seconds: 1_700_000_030.0,
            open_files: 12,
            open_files_max: Some(1024),
        };
        assert_eq!(found, expected);
        let without = parse(stat, machine, &limits.replace("1024", "unlimited"), 12, units);
        assert_eq!(without.unwrap().open_files_max, None);
        assert_eq!(parse("42 (outrigger) S 1", machine, limits, 12, units), None);
    }

    #[test]
    fn this_process_has_lived_and_uses_memory() {
        let now = Process::now().unwrap();

        assert!(now.resident_bytes > 1 << 20 && now.virtual_bytes >= now.resident_bytes);
        assert!(now.threads >= 1 && now.open_files >= 3);
        let age = crate::runtime::clock::now_ms() as f64 / 1000.0 - now.start_seconds;
        assert!((-5.0..86_400.0).contains(&age), "{age}");
    }
}
