//! Refuses combinations that cannot work.

use super::Config;

/// placeholder
pub fn validate(_config: &Config) -> anyhow::Result<()> {
    Ok(())
}
