"""What happens to a record, in reading order: records, tokenize, collate, loading."""
