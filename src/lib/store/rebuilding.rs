//! The mark of a Redis that is being filled again from Kafka: while it is there, no request is taken
//! in.

use redis::AsyncCommands;

use super::{Redis, StoreError};

impl Redis {
    /// Whether a rebuild is under way, or one was broken off.
    pub async fn is_being_rebuilt(&self) -> Result<bool, StoreError> {
        Ok(self.connection().exists(self.mark()).await?)
    }

    /// Whether this installation has nothing here.
    pub async fn is_empty(&self) -> Result<bool, StoreError> {
        let mut connection = self.connection();
        let tenants = format!("{}:tenants", self.prefix());
        if connection.exists(tenants).await? {
            return Ok(false);
        }
        // Other installations may share this Redis.
        let pattern = format!("{}:{{*", self.prefix());
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern);
            scan.arg("COUNT").arg(1000);
            let (next, found): (u64, Vec<String>) = scan.query_async(&mut connection).await?;
            if !found.is_empty() {
                return Ok(false);
            }
            if next == 0 {
                return Ok(true);
            }
            cursor = next;
        }
    }

    /// Sets the mark; false when it is there already.
    pub async fn begin_rebuild(&self) -> Result<bool, StoreError> {
        Ok(self.connection().set_nx(self.mark(), 1).await?)
    }

    /// Removes the mark.
    pub async fn end_rebuild(&self) -> Result<(), StoreError> {
        Ok(self.connection().del(self.mark()).await?)
    }

    fn mark(&self) -> String {
        format!("{}:rebuilding", self.prefix())
    }
}
