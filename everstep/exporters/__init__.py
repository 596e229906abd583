"""Operations' logs in the forms that people look at already: TensorBoard, MLflow."""
