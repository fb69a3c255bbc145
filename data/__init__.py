"""From files of records to batches; the modules in order of use: records, tokenize, collate, loading."""
