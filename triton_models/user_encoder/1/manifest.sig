{"key":"367f163d2c7b0f19020739fa3120b77b035307cddf52b320c47c704fb6638dcf","signature":"q0q/CqXIKahlgfirnSGDIDHviYUawbNUwSImg428Jb8Mz4ER9/FpuiQb+wSRTwj0IJanxJ9sbsP2TJDpEpBmAg=="}
