//! How the system's scheduler treats threads.
//!
//! *Place*: `task` calls it where a thread starts. Where who started the server has chosen a policy for it (`chrt`), all threads keep that.
//!
//! *On failure* threads run as the system sees fit: work in the background competes with clients.

/// Niceness of threads that nobody waits for: a tenth of the usual share of a busy core.
#[cfg(target_os = "linux")]
const LOW_NICE: libc::c_int = 10;

/// How long a thread that somebody waits for runs at a time on a busy core. Shorter than the system's own slice (3 to 4 ms), it takes the core
/// from background work as soon as it wakes, where it would wait for the end of the other's slice (Linux 6.12 and later).
#[cfg(target_os = "linux")]
const SHORT_SLICE_NS: u64 = 500_000;

/// For a thread that nobody waits for and that must come on all the same.
pub fn low() {
    #[cfg(target_os = "linux")]
    schedule(libc::SCHED_OTHER, niceness().max(LOW_NICE), 0);
}

/// For a thread that runs where a core has nothing else to do. Whoever wakes takes the core from it at once, and it costs them next to nothing;
/// while all cores are busy it stands nearly still.
pub fn idle() {
    #[cfg(target_os = "linux")]
    schedule(libc::SCHED_IDLE, niceness(), 0);
}

/// For a thread that somebody waits for.
pub fn prompt() {
    #[cfg(target_os = "linux")]
    schedule(libc::SCHED_OTHER, niceness(), SHORT_SLICE_NS);
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the standard library does not tell priorities")]
fn niceness() -> libc::c_int {
    // SAFETY: takes two numbers and touches no memory of this process. Zero is the calling thread.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Policy, niceness and slice of the calling thread; a slice of zero is the system's own.
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "the standard library does not set priorities")]
fn schedule(policy: libc::c_int, niceness: libc::c_int, slice_ns: u64) {
    // SAFETY: takes a number and touches no memory of this process.
    if unsafe { libc::sched_getscheduler(0) } != libc::SCHED_OTHER {
        return;
    }
    let attributes = libc::sched_attr {
        size: u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(0),
        sched_policy: policy.unsigned_abs(),
        sched_flags: 0,
        sched_nice: niceness,
        sched_priority: 0,
        sched_runtime: slice_ns,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the attributes say their size, live until the call returns and are only read. Zero is the calling thread.
    let refused = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) } != 0;
    if refused {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a thread runs at the usual priority");
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn a_threads_priority_is_its_own() {
        use super::{LOW_NICE, low, niceness, prompt};
        let before = niceness();
        let lowered = std::thread::spawn(|| {
            low();
            prompt();
            niceness()
        });
        assert_eq!(lowered.join().unwrap(), before.max(LOW_NICE));
        assert_eq!(niceness(), before);
    }
}
