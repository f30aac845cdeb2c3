def class_folder_warnings(names, labels):
    return []


def alien_test_classes(train, test):
    return [f"warning: alien {sorted(test)}"]


def twice(names, sizes):
    return [], []
