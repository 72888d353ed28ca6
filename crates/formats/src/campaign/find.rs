//! Finding campaigns by name.

use std::path::{Path, PathBuf};

use crate::campaign::parse::nearest;
use crate::campaign::{Campaign, CampaignError};

impl Campaign {
    /// Path of `experiments/NAME/campaign.toml` under the repository `root`.
    ///
    /// # Errors
    /// When there is none of this name; the message lists those that exist.
    pub fn find(root: &Path, name: &str) -> Result<PathBuf, CampaignError> {
        let available = Self::list(root)?;
        if available.iter().any(|known| known == name) {
            return Ok(root.join("experiments").join(name).join("campaign.toml"));
        }
        if available.is_empty() {
            return Err(CampaignError::None { path: root.join("experiments") });
        }
        let nearest = nearest(name, available.iter().map(String::as_str)).map(String::from);
        Err(CampaignError::Unknown { name: name.into(), nearest, available })
    }

    /// Names of the campaigns under the repository `root`, sorted.
    ///
    /// # Errors
    /// When the folder `experiments` cannot be read.
    pub fn list(root: &Path) -> Result<Vec<String>, CampaignError> {
        let path = root.join("experiments");
        let read = |source| CampaignError::Read { path: path.clone(), source };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(read)? {
            let entry = entry.map_err(read)?;
            if entry.path().join("campaign.toml").is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}
