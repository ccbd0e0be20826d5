//! `verus bench` and `verus demo`: clients that drive a server over the wire.
/// x
#[derive(Debug, clap::Args)]
pub struct BenchArgs {}
/// x
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
/// x
pub fn bench(_: &BenchArgs) -> Result<(), std::io::Error> {
    Ok(())
}
/// x
pub fn demo(_: &DemoArgs) -> Result<(), std::io::Error> {
    Ok(())
}
