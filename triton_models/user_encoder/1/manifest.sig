{"key":"367f163d2c7b0f19020739fa3120b77b035307cddf52b320c47c704fb6638dcf","signature":"EGUvkH5wUy/Gkh+tVi8NwKOp9Q8bwyNkQgxHrfmKvxi+axGAbRyzzNDqBIG0WloNAFCo9Ht4RyQy56OKgpGzDQ=="}
