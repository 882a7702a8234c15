"""The loops under the transforms: chunks that stay in the cache, memory that is used again."""
