"""What MLflow shows of a sweep: the only home of MLflow."""
