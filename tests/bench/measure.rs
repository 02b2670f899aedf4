//! What the operating system says of a process, and what a round's times say.

/// A process at one moment.
pub struct Process {
    /// CPU seconds, user and system.
    pub cpu: f64,
    pub rss_mb: f64,
    pub rss_peak_mb: f64,
    /// Bytes written to disk.
    pub written: u64,
}

impl Process {
    pub fn read(pid: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 = [11, 12].iter().filter_map(|at| fields.get(*at)?.parse::<f64>().ok()).sum();
        let kb = |name: &str| {
            let status = read("status");
            let line = status.lines().find(|line| line.starts_with(name)).map(str::to_owned).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
        };
        let io = read("io");
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0);
        Self { cpu: ticks / 100.0, rss_mb: kb("VmRSS"), rss_peak_mb: kb("VmHWM"), written }
    }
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Times in milliseconds.
pub struct Times(Vec<f64>);

impl Times {
    pub fn new(mut times: Vec<f64>) -> Self {
        times.sort_by(f64::total_cmp);
        Self(times)
    }

    pub fn quantile(&self, quantile: f64) -> f64 {
        let at = ((self.0.len() as f64 * quantile) as usize).min(self.0.len().saturating_sub(1));
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }
}
