"""What vhost-user is made of, without files, sockets and loops."""
