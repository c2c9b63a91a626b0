"""One cell of the task space: settings, data, the record of methods, a row of results, the console."""
