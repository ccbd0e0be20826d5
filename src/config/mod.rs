//! Settings and limits: flags, then `VERUS_*`, then `verus.toml`, then the defaults.
pub mod limits;
pub use limits::Limits;
/// All settings.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Named maxima of every queue, batch and buffer.
    pub limits: Limits,
}
