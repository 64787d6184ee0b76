//! The space of a disk, and what the log may use of it.
//!
//! Between two checks of the free space the journal grows, and write buffers that were accepted before are flushed to
//! tables, which copies what the journal already contains. On a small disk both must be small, or they would use the
//! reserve.

use std::io;
use std::path::Path;

const MIB: u64 = 1024 * 1024;
/// Greatest default reserve.
const RESERVE_BYTES_MAX: u64 = 128 * MIB;

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DiskSpace {
    /// Available to this process.
    pub free: u64,
    /// Size of the file system.
    pub total: u64,
}

impl DiskSpace {
    /// Reads the space of the file system of a directory; `None` if it has no size, such as an unlimited tmpfs.
    pub fn of(dir: &Path) -> io::Result<Option<DiskSpace>> {
        let found = rustix::fs::statvfs(dir)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok((found.f_blocks > 0).then(|| DiskSpace {
            free: bytes(found.f_bavail),
            total: bytes(found.f_blocks),
        }))
    }

    /// The default reserve. On a small disk, a fixed reserve would leave no space to write.
    pub fn default_reserve(self) -> u64 {
        RESERVE_BYTES_MAX.min(self.total / 8)
    }
}

/// What may be written before the free space is checked again, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteLimits {
    /// The free space is checked after this many bytes of writes, in addition to the checks of the keeper.
    pub check_bytes: u64,
    /// Write buffers of records are flushed at this size. Blocks are large, few, and read in order.
    pub records_buffer_bytes: u64,
    /// Write buffers of metadata are flushed at this size.
    pub meta_buffer_bytes: u64,
}

impl WriteLimits {
    /// The limits on a disk. They depend on its size, not on the configured reserve, so that a reserve of 0 does not make
    /// all buffers tiny.
    pub fn of(dir: &Path) -> WriteLimits {
        let space = DiskSpace::of(dir).ok().flatten();
        WriteLimits::for_reserve(space.map_or(RESERVE_BYTES_MAX, DiskSpace::default_reserve))
    }

    fn for_reserve(bytes: u64) -> WriteLimits {
        WriteLimits {
            check_bytes: (bytes / 16).clamp(MIB / 2, 8 * MIB),
            records_buffer_bytes: (bytes / 16 * 3).clamp(MIB, 24 * MIB),
            meta_buffer_bytes: (bytes / 16).clamp(MIB / 2, 8 * MIB),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_reserve_is_small_on_a_small_disk() {
        let disk = |mib: u64| DiskSpace {
            free: 0,
            total: mib * MIB,
        };
        let reserves = [64, 512, 1024, 1 << 20].map(|mib| disk(mib).default_reserve() / MIB);
        assert_eq!(reserves, [8, 64, 128, 128]);
    }

    #[test]
    fn buffers_shrink_with_the_reserve() {
        let limits = |mib: u64| {
            let limits = WriteLimits::for_reserve(mib * MIB);
            [
                limits.check_bytes,
                limits.records_buffer_bytes,
                limits.meta_buffer_bytes,
            ]
            .map(|bytes| bytes / 1024)
        };
        assert_eq!(limits(128), [8192, 24576, 8192]);
        assert_eq!(limits(32), [2048, 6144, 2048]);
        assert_eq!(limits(1), [512, 1024, 512]);
    }
}
