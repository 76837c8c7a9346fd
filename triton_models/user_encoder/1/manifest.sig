{"key":"367f163d2c7b0f19020739fa3120b77b035307cddf52b320c47c704fb6638dcf","signature":"V+s1y2p48Gdn7kexVRnyh9vzcL/3CZoBp+VnZGRl15iJq1TJzQcYohuXqbU6oMbiGEU+ZdI3KtsL0RvmhCFLBg=="}
