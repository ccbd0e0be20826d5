//! stub
use super::Result;
/// x
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
/// x
pub fn demo(_: &DemoArgs) -> Result<()> {
    Ok(())
}
