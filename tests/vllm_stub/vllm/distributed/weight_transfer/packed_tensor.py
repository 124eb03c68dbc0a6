import torch


def packed_nccl_broadcast_producer(iterator, group, src, post_iter_func, buffer_size_bytes=1 << 30, num_buffers=2):
    for item in iterator:
        tensor = post_iter_func(item).detach().contiguous()
        group.connection.sendall(tensor.view(-1).view(torch.uint8).numpy().tobytes())
